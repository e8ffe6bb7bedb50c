"""How far a step moves each kernel: against real steps, known cases, and what is written."""

import copy
import json
import math

import matplotlib.image
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmorepa.det
import mmorepa.seg  # noqa: F401
from mmorepa import OREPAConv2d, squeeze, switch_to_deploy
from mmorepa.checkpoints.models import build_model
from mmorepa.convs.rows import as_kernel
from mmorepa.datasets.digits import write_digits
from mmorepa.errors import UserError
from mmorepa.lab.analysis import effective_lr_report as reports
from mmorepa.lab.analysis.effective_lr import (
    Layer,
    kernel_gradients,
    kernel_step,
    leaf_kernels,
    learning_rates,
    left_as_found,
    measure,
    measure_plain,
)
from mmorepa.lab.analysis.effective_lr_report import StepReport
from support import CONFIG, ROOT, make_trained_like

ETA = 1e-8  # a rate so small that second order is out of sight in float64
FIRST_ORDER = 1e-4  # relative, what is left of it at that rate
SAME = 1e-9  # relative, two ways to the same number in float64
GRADIENT = 1e-4  # relative, two ways to the same gradient in float32
TWO_DIGITS = 0.05  # relative, a number rounded to two digits
NAN = math.nan


def block(*args, **kwargs):
    return make_trained_like(OREPAConv2d(*args, bias=False, **kwargs)).double()


class TestKernelStep:
    @pytest.mark.parametrize(
        'args, kwargs',
        [
            ((4, 6, 1), {}),
            ((6, 4, 1), {}),
            ((4, 6, 3), dict(padding=1)),
            ((4, 4, 5), dict(padding=2)),
            ((8, 8, 3), dict(padding=1, groups=2)),
            ((8, 16, 3), dict(padding=1, groups=8)),
            ((3, 4, 7), dict(padding=3, stride=2)),
            ((2, 3, 9), dict(padding=4)),
        ],
        ids=str,
    )
    def test_is_what_sgd_does(self, args, kwargs):
        """A real step, every parameter at another rate, one of them frozen."""
        torch.manual_seed(0)
        conv = block(*args, **kwargs)
        x = torch.randn(2, args[0], 9, 9, dtype=torch.float64)
        parameters = dict(conv.kernel.named_parameters())
        rates = {name: i % 5 * ETA for i, name in enumerate(parameters)}
        before = conv.squeeze().detach()

        leaf = before.clone().requires_grad_()
        conv._conv_forward(x, leaf, None).square().mean().backward()
        conv(x).square().mean().backward()
        optimizer = torch.optim.SGD(
            [dict(params=[p], lr=rates[name]) for name, p in parameters.items()]
        )
        expected = kernel_step(conv.kernel, leaf.grad, rates)
        optimizer.step()
        moved = before - conv.squeeze().detach()
        assert moved.norm() > 0
        assert (moved - expected).norm() < FIRST_ORDER * expected.norm()

    def test_weights_without_a_scale_move_as_plain_ones(self):
        conv = block(4, 6, 3, branches=dict(original=None))
        gradient = torch.randn(6, 4, 3, 3, dtype=torch.float64)
        step = kernel_step(conv.kernel, gradient, {'original.weight': 0.1})
        torch.testing.assert_close(step, 0.1 * gradient, rtol=SAME, atol=0)

    def test_a_scaled_weight(self):
        """d(s V) = s dV + V ds, with dV = l s G and ds = m <V, G>."""
        conv = block(4, 6, 3, branches=['original'])
        gradient = torch.randn(6, 4, 3, 3, dtype=torch.float64)
        rates = {'original.weight': 0.1, 'original.scale': 0.3}
        weight = as_kernel(conv.kernel.original.weight.detach(), 3)
        scale = conv.kernel.original.scale.detach().reshape(-1, 1, 1, 1)
        inner = (weight * gradient).sum((1, 2, 3), keepdim=True)
        expected = 0.1 * scale**2 * gradient + 0.3 * inner * weight
        step = kernel_step(conv.kernel, gradient, rates)
        torch.testing.assert_close(step, expected, rtol=SAME, atol=SAME)

    def test_an_average(self):
        """W = p / k^2 at every position: dW = l (the sum of G) / k^4."""
        conv = block(4, 6, 3, branches=dict(average=None))
        gradient = torch.randn(6, 4, 3, 3, dtype=torch.float64)
        expected = 0.1 * gradient.sum((2, 3), keepdim=True).expand_as(gradient) / 81
        step = kernel_step(conv.kernel, gradient, {'average.weight': 0.1})
        torch.testing.assert_close(step, expected, rtol=SAME, atol=0)


class Shared(nn.Module):
    """A block that runs twice, once in a checkpointed part."""

    def __init__(self):
        super().__init__()
        self.conv = OREPAConv2d(6, 6, 3, padding=1, bias=False)

    def forward(self, x):
        return checkpoint(self.conv, self.conv(x), use_reentrant=True)


class Toy(BaseModel):
    """Every kind of block in one network; its loss has two terms."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            OREPAConv2d(3, 4, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            OREPAConv2d(4, 6, 1, bias=False),
            nn.BatchNorm2d(6),
            OREPAConv2d(6, 6, 3, padding=1, groups=2, bias=False, mode='offline'),
            nn.ReLU(),
            Shared(),
            OREPAConv2d(6, 6, 3, padding=1, bias=False).requires_grad_(False),
        )
        self.unused = OREPAConv2d(3, 3, 3)

    def forward(self, inputs, mode='tensor'):
        out = self.layers(inputs)
        return dict(loss_a=out.square().mean(), loss_b=[out.sin().mean()], accuracy=out.sum())


STEM, ONE, GROUPED, SHARED, FROZEN = (f'layers.{name}' for name in ('0', '3', '5', '7.conv', '8'))


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return make_trained_like(Toy()).double()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        dict(inputs=torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64))
        for _ in range(2)
    ]


def optim_wrapper(lr=ETA, **paramwise_cfg):
    return dict(
        constructor='OREPAOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=0),
        paramwise_cfg=paramwise_cfg,
    )


MULTIPLIERS = dict(
    stem=dict(lr_mult=0.5), scale=dict(lr_mult=3), patterns={'layers.*': dict(lr_mult=2)}
)


def plain_gradients(model, batch):
    """The gradients at the kernels, from a network that has them as parameters."""
    plain = squeeze(copy.deepcopy(model))
    names = [name for name, m in model.named_modules() if isinstance(m, OREPAConv2d)]
    plain.requires_grad_(True)
    data = plain.data_preprocessor(batch, True)
    loss, _ = plain.parse_losses(plain(**data, mode='loss'))
    loss.backward()
    return {name: plain.get_submodule(name).weight.grad for name in names}


class TestMeasurePlain:
    def test_is_a_real_step(self, toy, batches):
        plain = squeeze(toy).requires_grad_(True)
        plain.get_submodule(FROZEN).requires_grad_(False)
        before = copy.deepcopy(plain)
        cfg = optim_wrapper(patterns={f'{ONE}.*': dict(lr_mult=2)})
        found = measure_plain(plain, batches[:1], cfg)
        assert all(p.grad is None for p in plain.parameters())
        assert plain.state_dict().keys() == before.state_dict().keys()
        plain.train()
        plain.train_step(batches[0], build_optim_wrapper(plain, cfg))
        assert set(found) == {STEM, ONE, GROUPED, SHARED}  # neither frozen nor unused ones
        for name, step in found.items():
            weight = before.get_submodule(name).weight
            moved = plain.get_submodule(name).weight - weight
            assert step == pytest.approx((moved.norm() / weight.norm()).item(), rel=FIRST_ORDER)

    def test_the_median_over_the_batches(self, toy, batches):
        plain = squeeze(toy).requires_grad_(True)
        each = [measure_plain(plain, [batch], optim_wrapper()) for batch in batches]
        both = measure_plain(plain, batches, optim_wrapper())
        for name, step in both.items():
            assert step == pytest.approx(sum(one[name] for one in each) / 2, rel=SAME)

    def test_blocks_are_no_plain_convolutions(self, toy, batches):
        assert measure_plain(toy, batches, optim_wrapper()) == {}


class TestMeasure:
    def test_gradients_are_those_of_the_squeezed_network(self, toy, batches):
        toy.train()
        expected = plain_gradients(toy, batches[0])
        found = kernel_gradients(toy, batches[0])
        assert expected.pop('unused') is None
        assert not found.pop('unused').any()
        assert list(found) == [STEM, ONE, GROUPED, SHARED, FROZEN] == list(expected)
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=SAME, atol=SAME)

    def test_numbers_are_those_of_a_real_step(self, toy, batches):
        cfg = optim_wrapper(**MULTIPLIERS)
        layers = {layer.name: layer for layer in measure(toy, batches[:1], cfg)}
        toy.train()
        gradients = plain_gradients(toy, batches[0])
        kernels = {name: toy.get_submodule(name).squeeze().detach() for name in gradients}
        toy.train_step(batches[0], build_optim_wrapper(toy, cfg))
        for name in (STEM, ONE, GROUPED, SHARED):
            moved = kernels[name] - toy.get_submodule(name).squeeze().detach()
            # The pattern is for plain convolutions, too.
            plain = 2 * ETA * gradients[name]
            gain = (moved.norm() / plain.norm()).item()
            along = (moved * plain).sum().item() / plain.norm().item() ** 2
            layer = layers[name]
            assert layer.gain == pytest.approx([gain], rel=FIRST_ORDER)
            assert layer.along == pytest.approx([along], rel=FIRST_ORDER)
            assert layer.cosine == pytest.approx([along / gain], rel=FIRST_ORDER)
            relative = (moved.norm() / kernels[name].norm()).item()
            assert layer.relative == pytest.approx([relative], rel=FIRST_ORDER)

    def test_layers(self, toy, batches):
        layers = {layer.name: layer for layer in measure(toy, batches, optim_wrapper())}
        assert layers[STEM].kind == 'stem'
        assert layers[STEM].shape == (4, 3, 7, 7)
        assert [layers[name].kind for name in (ONE, GROUPED, SHARED)] == ['1x1', '3x3', '3x3']
        assert len(set(layers[STEM].gain)) == 2
        assert layers[FROZEN].frozen
        assert layers[FROZEN].gain == []
        assert math.isnan(layers[FROZEN].spread('gain')[1])
        assert all(map(math.isnan, layers['unused'].gain))
        assert not layers['unused'].frozen

    def test_multipliers_of_the_stem_scale_its_numbers_alone(self, toy, batches):
        plain = measure(toy, batches, optim_wrapper())
        slow = measure(toy, batches, optim_wrapper(stem=dict(lr_mult=0.1)))
        for before, after in zip(plain[:4], slow):
            factor = 0.1 if before.kind == 'stem' else 1
            for number, power in dict(gain=1, along=1, relative=1, cosine=0).items():
                expected = [factor**power * value for value in getattr(before, number)]
                assert getattr(after, number) == pytest.approx(expected, rel=SAME)

    def test_a_multiplier_of_the_whole_network_is_no_gain(self, toy, batches):
        everywhere = dict(custom_keys={'layers': dict(lr_mult=0.01)})
        for before, after in zip(
            measure(toy, batches, optim_wrapper())[:4],
            measure(toy, batches, optim_wrapper(**everywhere)),
        ):
            assert after.gain == pytest.approx(before.gain, rel=SAME)
            assert after.relative == pytest.approx(
                [0.01 * value for value in before.relative], rel=SAME
            )

    def test_leaves_the_model_as_it_was(self, toy, batches):
        toy.train()
        toy.layers[1].eval()
        toy.layers[3].kernel.original.weight.grad = kept = torch.ones(6, 1, 4).double()
        before = copy.deepcopy(toy.state_dict())
        modes = [module.training for module in toy.modules()]
        statistics = toy.layers[4].running_mean
        measure(toy, batches, optim_wrapper())
        after = toy.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert [module.training for module in toy.modules()] == modes
        assert toy.layers[4].running_mean is statistics
        assert toy.layers[3].kernel.original.weight.grad is kept
        assert [p for p in toy.parameters() if p.grad is not None] == [
            toy.layers[3].kernel.original.weight
        ]
        assert {type(m) for m in toy.modules() if isinstance(m, OREPAConv2d)} == {OREPAConv2d}
        assert toy.layers[5].mode == 'offline'

    def test_leaves_the_model_as_it_was_after_an_error(self, toy, batches):
        statistics = toy.layers[4].running_mean.clone()
        toy.eval()
        with pytest.raises(RuntimeError), left_as_found(toy), leaf_kernels(toy):
            toy.train()
            toy(torch.randn(2, 5, 16, 16).double())
        with pytest.raises(RuntimeError, match='size'):
            measure(toy, [*batches, dict(inputs=torch.randn(1, 4, 8, 8))], optim_wrapper())
        assert torch.equal(toy.layers[4].running_mean, statistics)
        assert not toy.layers[0].training
        assert type(toy.layers[0]) is OREPAConv2d

    def test_batch_norm_is_in_training_mode(self, toy, batches):
        """Its statistics are those of the batch: a shift of the running mean changes nothing."""
        before = measure(toy.eval(), batches, optim_wrapper())
        toy.layers[1].running_mean += 10
        after = measure(toy.eval(), batches, optim_wrapper())
        assert before[0].gain == pytest.approx(after[0].gain, rel=SAME)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        'cfg, found',
        [
            (dict(optimizer=dict(type='AdamW', lr=0.1)), 'AdamW'),
            (dict(constructor='Two', optimizer={}), 'not a single one'),
        ],
    )
    def test_other_optimizers(self, cfg, found, toy, batches, two_optimizers):
        with pytest.raises(UserError, match=f'is {found}: the step measured here is that of SGD'):
            measure(toy, batches, cfg)

    def test_a_model_without_blocks(self, toy, batches):
        with pytest.raises(UserError, match='Toy has no generated kernels'):
            measure(squeeze(toy), batches, optim_wrapper())


@pytest.fixture
def two_optimizers():
    from mmengine.optim import OptimWrapper, OptimWrapperDict
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    @OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='Two')
    class Two:
        def __init__(self, *_, **__):
            pass

        def __call__(self, model):
            sgd = torch.optim.SGD(model.parameters(), lr=0.1)
            return OptimWrapperDict(a=OptimWrapper(sgd), b=OptimWrapper(sgd))

    yield
    OPTIM_WRAPPER_CONSTRUCTORS._module_dict.pop('Two')


def test_rates_under_mixed_precision_are_the_same(toy):
    plain = optim_wrapper(**MULTIPLIERS)
    mixed = dict(plain, type='AmpOptimWrapper', loss_scale='dynamic')
    assert learning_rates(toy, mixed) == learning_rates(toy, plain)


def test_without_rules_frozen_parameters_have_no_rate(toy):
    """MMEngine then hands all of them to the optimizer."""
    rates = learning_rates(toy, dict(optimizer=dict(type='SGD', lr=0.1)))
    assert rates == {id(p): 0.1 for p in toy.parameters() if p.requires_grad}
    assert len(rates) < len(list(toy.parameters()))


class TestOtherLibraries:
    """Gradients on detectors and segmentors, with blocks in the shared layers of a head."""

    backbone = dict(
        type='OREPAResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'),
        zero_init_residual=False,
    )

    def check(self, model, batch, blocks):
        make_trained_like(model).train()
        expected = plain_gradients(model, batch)
        found = kernel_gradients(model, batch)
        assert len(found) == len(expected) == blocks
        for name, gradient in found.items():
            assert gradient.norm() > 0, name
            assert (gradient - expected[name]).norm() < GRADIENT * gradient.norm(), name

    def test_detector(self):
        from mmdet.testing import demo_mm_inputs

        model = MODELS.build(
            dict(
                type='RetinaNet',
                _scope_='mmdet',
                data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
                backbone=self.backbone,
                neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
                bbox_head=dict(
                    type='RetinaHead',
                    num_classes=3,
                    in_channels=8,
                    feat_channels=8,
                    stacked_convs=1,
                    conv_cfg=dict(type='OREPAConv2d'),
                    anchor_generator=dict(
                        type='AnchorGenerator',
                        ratios=[1.0],
                        scales=[4],
                        strides=[4, 8, 16, 32, 64],
                    ),
                    bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                ),
                train_cfg=dict(
                    assigner=dict(
                        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0
                    ),
                    sampler=dict(type='PseudoSampler'),
                    allowed_border=-1,
                    pos_weight=-1,
                    debug=False,
                ),
            )
        )
        batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[3, 2], num_classes=3)
        self.check(model, batch, blocks=17 + 2)

    def test_segmentor(self):
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        model = MODELS.build(
            dict(
                type='EncoderDecoder',
                _scope_='mmseg',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
                backbone=dict(self.backbone, with_cp=True),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=32,
                    in_index=3,
                    channels=8,
                    num_convs=1,
                    dropout_ratio=0,
                    num_classes=3,
                    conv_cfg=dict(type='OREPAConv2d'),
                    norm_cfg=dict(type='BN'),
                ),
            )
        )
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 3, (1, 64, 64), generator=generator)
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        images = torch.rand(2, 3, 64, 64, generator=generator)
        batch = dict(inputs=list(images), data_samples=[sample, sample])
        self.check(model, batch, blocks=17 + 2)


def layer(name, kind, frozen=False, gain=(), relative=()):
    return Layer(
        name,
        kind,
        (4, 3, 7, 7),
        frozen,
        gain=list(gain),
        along=[value / 2 for value in gain],
        cosine=[NAN if math.isnan(value) else 0.5 for value in gain],
        relative=list(relative),
    )


def report(*layers, plain_steps=None, **lr_mults):
    plain = dict(plain='p.py, q.pth', plain_steps=plain_steps) if plain_steps else {}
    lr_mults = lr_mults or dict(stem=1, block=1)
    return StepReport('a.py', 'b.pth', 3, list(layers), lr_mults, **plain)


STEM_LAYER = layer('conv1', 'stem', gain=[10, 20, 40], relative=[0.1, 0.3, 0.2])
OTHERS = (
    layer('a', '3x3', gain=[1, 1, 1], relative=[0.01, 0.01, 0.01]),
    layer('b', '1x1', gain=[2, NAN, 4], relative=[0.02, NAN, 0.02]),
    layer('c', '3x3', gain=[9, 8, 7], relative=[0.09, 0.08, 0.07]),
    layer('d', '3x3', frozen=True),
    layer('e', '3x3', gain=[NAN] * 3, relative=[NAN] * 3),
)
#: 5 times the stem's relative step, and 2, 3 and 4 times that of the other blocks.
PLAIN_STEPS = dict(conv1=1.0, a=0.02, b=0.06, c=0.32, d=0.1, e=0.1, head=9.0)


class TestReport:
    @pytest.mark.parametrize(
        'lr_mults, like, expected',
        [
            (dict(stem=1), 'plain', dict(stem=0.05)),
            (dict(stem=1), 'block', dict(stem=0.15)),
            (dict(stem=1), 'relative', dict(stem=0.1)),
            (dict(stem=0.1), 'plain', dict(stem=0.005)),
            (dict(stem=0.1, stem_scale=0.5), 'plain', dict(stem=0.005, stem_scale=0.025)),
        ],
    )
    def test_suggestion(self, lr_mults, like, expected):
        found = report(STEM_LAYER, *OTHERS, **lr_mults).suggest(like)
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize(
        'lr_mults, steps, expected',
        [
            (dict(stem=0.1, block=2), PLAIN_STEPS, dict(stem=0.5, block=6)),
            (dict(stem=1, block=2, scale=7), PLAIN_STEPS, dict(stem=5, block=6, scale=21)),
            (dict(stem=1, stem_scale=2, block=1), dict(conv1=1.0), dict(stem=5, stem_scale=10)),
            (dict(stem=1, block=1), dict(a=0.02, b=0.1), dict(block=3.5)),
        ],
        ids=['both', 'scales', 'stem', 'blocks'],
    )
    def test_suggestion_like_the_plain_network(self, lr_mults, steps, expected):
        found = report(STEM_LAYER, *OTHERS, plain_steps=steps, **lr_mults).suggest('network')
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize(
        'steps, message',
        [
            (None, 'no plain network to compare with: give one with --plain'),
            (
                dict(head=9.0, e=1.0),
                'p.py, q.pth has no plain convolution .* as conv1: wanted',
            ),
        ],
        ids=['none', 'another'],
    )
    def test_no_plain_network_to_step_like(self, steps, message):
        with pytest.raises(UserError, match=message) as info:
            report(STEM_LAYER, *OTHERS, plain_steps=steps).suggest('network')
        assert '\n' not in str(info.value)

    def test_is_rounded_to_two_digits(self):
        stem = layer('conv1', 'stem', gain=[7], relative=[0.1])
        assert report(stem).suggest() == dict(stem=0.14)

    @pytest.mark.parametrize(
        'layers, like, message',
        [
            (OTHERS, 'plain', 'the model has no deep linear stem'),
            ([layer('conv1', 'stem', frozen=True), *OTHERS], 'plain', 'the stem conv1 is frozen'),
            ([layer('conv1', 'stem', gain=[NAN], relative=[NAN])], 'plain', 'gets no gradient'),
            ([layer('conv1', 'stem', gain=[0], relative=[0])], 'plain', 'is frozen or gets no'),
            ([STEM_LAYER], 'relative', 'choose --like plain'),
        ],
    )
    def test_nothing_to_suggest(self, layers, like, message):
        with pytest.raises(UserError, match=message) as info:
            report(*layers).suggest(like)
        assert '\n' not in str(info.value)

    def test_summary(self):
        lines = report(STEM_LAYER, *OTHERS).summary()
        assert lines[0] == 'stem: gain 20, relative 0.2, under stem lr_mult=1'
        assert lines[1] == 'other blocks, median: gain 3, relative 0.02, under block lr_mult=1'
        assert [line.rpartition(': ')[2] for line in lines[2:]] == [
            'stem lr_mult=0.05',
            'stem lr_mult=0.15',
            'stem lr_mult=0.1',
        ]

    def test_summary_beside_a_plain_network(self):
        lines = report(STEM_LAYER, *OTHERS, plain_steps=PLAIN_STEPS).summary()
        assert lines[2].startswith('plain network (p.py, q.pth): its steps are 3 times as long')
        assert lines[-1].endswith(
            '(the median ratio of relative steps): stem lr_mult=5, block lr_mult=3'
        )

    def test_summary_of_a_stem_alone(self):
        lines = report(STEM_LAYER).summary()
        assert [line.partition(':')[0] for line in lines] == [
            'stem',
            'to step like a plain convolution with the same kernel (gain 1)',
        ]

    def test_summary_without_a_stem(self):
        lines = report(*OTHERS).summary()
        assert len(lines) == 2
        assert 'no deep linear stem' in lines[1]

    def test_table(self):
        shown = report(STEM_LAYER, *OTHERS).table()
        rows = list(zip(*[column.cells for column in shown.columns]))
        assert rows[0] == (
            ('conv1', 'stem', '4x3x7x7', '20 ±75%', '10 ±75%', '0.5 ±0%', '0.2 ±50%')
        )
        assert rows[2][3] == '3 ±33%'
        assert rows[4][3:] == ('frozen', '', '', '')
        assert rows[5][3:] == ('-',) * 4

    def test_table_beside_a_plain_network(self):
        shown = report(*OTHERS, plain_steps=dict(a=0.02)).table()
        assert list(shown.columns[-1].cells)[:2] == ['0.02', '-']

    def test_json(self, tmp_path):
        report(STEM_LAYER, *OTHERS).write_json(tmp_path / 'a.json')
        found = json.loads((tmp_path / 'a.json').read_text())
        assert found['suggested'] == dict(
            plain=dict(stem=0.05), block=dict(stem=0.15), relative=dict(stem=0.1)
        )
        assert found['layers'][0]['gain'] == [10, 20, 40]
        assert found['layers'][2]['gain'] == [2, None, 4]
        assert found['layers'][4]['frozen'] is True

    def test_plot(self, tmp_path):
        """As tall as there are layers, with the stem's colour in it."""
        heights = []
        for count in (1, 6):
            path = tmp_path / f'{count}.png'
            report(STEM_LAYER, *OTHERS * count).write_picture(path)
            pixels = (matplotlib.image.imread(path)[..., :3] * 255).round()
            heights.append(len(pixels))
            stem = torch.tensor([0xD5, 0x5E, 0x00])
            assert (torch.from_numpy(pixels) == stem).all(-1).sum() > 20
        assert heights[1] > 1.5 * heights[0]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The digits and what makes a config read them in this process."""
    folder = tmp_path_factory.mktemp('digits')
    write_digits(folder, ['imagenet'], image_size=48)
    return {
        'train_dataloader.dataset.data_root': str(folder / 'imagenet'),
        'train_dataloader.batch_size': 16,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    }


class TestStudy:
    def test_like_a_plain_network(self, narrow_config, training_checkpoint, digits, tmp_path):
        """A config with the multipliers that are found has the plain network's steps."""
        plain = narrow_config(**digits, **{'model.backbone.reparam': None})
        cfg = narrow_config(**digits)
        found = reports.study(cfg, training_checkpoint, 1, plain)
        assert found.plain == f'{CONFIG.name}, the start of training'
        assert {layer.name for layer in found.layers} < set(found.plain_steps)
        path = tmp_path / 'matched.py'
        mults = reports.write_config(found, cfg, path, like='network')
        cfg.optim_wrapper = Config.fromfile(path).optim_wrapper
        after = reports.study(cfg, training_checkpoint, 1, plain)
        assert after.lr_mults == mults
        for is_stem in (False, True):
            assert found.lag(is_stem) != pytest.approx(1, rel=TWO_DIGITS)
            assert after.lag(is_stem) == pytest.approx(1, rel=TWO_DIGITS)

    def test_on_the_digits(self, narrow_config, training_checkpoint, digits):
        cfg = narrow_config(**digits)
        first, again = (reports.study(cfg, training_checkpoint, batches=1) for _ in range(2))
        assert first == again
        assert (first.config, first.checkpoint) == (CONFIG.name, 'epoch_3.pth')
        assert len(first.layers) == 17
        assert [layer.kind for layer in first.layers].count('stem') == 1

    def test_the_start_of_training(self, narrow_config, digits):
        found = reports.study(narrow_config(**digits), batches=1)
        assert found.checkpoint == 'the start of training'
        assert found.layers[0].gain[0] > 0

    def test_load_from_is_the_start_of_training(self, narrow_config, training_checkpoint, digits):
        cfg = narrow_config(load_from=str(training_checkpoint), **digits)
        given = reports.study(narrow_config(**digits), training_checkpoint, batches=1)
        assert reports.study(cfg, batches=1) == given

    def test_written_config_makes_the_gain_one(
        self, narrow_config, training_checkpoint, digits, tmp_path
    ):
        cfg = narrow_config(**digits)
        before = reports.study(cfg, training_checkpoint, batches=1)
        path = tmp_path / 'sub' / 'slow_stem.py'
        mults = reports.write_config(before, cfg, path)
        written = Config.fromfile(path)
        assert written.optim_wrapper.paramwise_cfg == dict(
            cfg.optim_wrapper.paramwise_cfg, stem=dict(lr_mult=mults['stem'])
        )
        cfg.optim_wrapper = written.optim_wrapper
        after = reports.study(cfg, training_checkpoint, batches=1)
        assert after.stem('gain') == pytest.approx(1, rel=TWO_DIGITS)
        assert after.others('gain') == before.others('gain')
        assert after.lr_mults == dict(mults, block=1)
        assert after.suggest() == pytest.approx(mults, rel=TWO_DIGITS)

    @pytest.mark.parametrize('change, form', [(squeeze, 'plain'), (switch_to_deploy, 'deploy')])
    def test_converted_checkpoints(self, change, form, narrow_config, tmp_path):
        cfg = narrow_config()
        path = tmp_path / 'converted.pth'
        torch.save(dict(state_dict=change(build_model(cfg)).state_dict()), path)
        message = f'converted.pth is in {form} form, its .*: give the checkpoint that'
        with pytest.raises(UserError, match=message) as info:
            reports.study(cfg, path)
        assert '\n' not in str(info.value)

    @pytest.mark.parametrize(
        'options, message',
        [
            ({'model.backbone.reparam': None}, 'ImageClassifier has no generated kernels'),
            ({'train_dataloader': None}, 'no train_dataloader or no optim_wrapper'),
            ({'train_dataloader.dataset.data_root': 'nowhere'}, 'the training data .* not there'),
        ],
    )
    def test_wrong_configs(self, options, message, narrow_config):
        with pytest.raises(UserError, match=message) as info:
            reports.study(narrow_config(**options))
        assert '\n' not in str(info.value)


class TestTarget:
    def refused(self, message, *args, **kwargs):
        with pytest.raises(UserError, match=message) as info:
            reports.check_target(*args, **kwargs)
        assert '\n' not in str(info.value)

    def test_existing_file(self, narrow_config, tmp_path):
        path = tmp_path / 'a.py'
        path.touch()
        self.refused('exists already', narrow_config(), path)
        reports.check_target(narrow_config(), path, force=True)

    def test_another_ending(self, narrow_config, tmp_path):
        self.refused('is no name for a config', narrow_config(), tmp_path / 'a.json')

    def test_the_config_itself(self, narrow_config):
        self.refused('is the config itself', narrow_config(), CONFIG, force=True)

    def test_rules_that_know_no_stem(self, narrow_config, tmp_path):
        cfg = narrow_config(**{'optim_wrapper.constructor': 'LearningRateDecay'})
        self.refused('LearningRateDecay, which knows no stem', cfg, tmp_path / 'a.py')


class TestCommand:
    command = (ROOT / 'tools' / 'analyze.py', 'effective-lr')

    def options(self, digits):
        narrow = (
            'model.backbone.base_channels=8',
            'model.backbone.stem_channels=8',
            'model.head.in_channels=64',
        )
        return ['--cfg-options', *narrow, *[f'{key}={value}' for key, value in digits.items()]]

    def test_measures_shows_and_writes(self, training_checkpoint, digits, run_forked, tmp_path):
        arguments = ['--batches', 2, '--out', 'out', '--write', 'slow_stem.py']
        text = run_forked(
            tmp_path,
            *self.command,
            CONFIG,
            training_checkpoint,
            *arguments,
            *self.options(digits),
        )
        assert 'backbone.layer4.1.conv2' in text
        found = json.loads((tmp_path / 'out' / 'effective_lr.json').read_text())
        assert [len(layer['gain']) for layer in found['layers']] == [2] * 17
        assert matplotlib.image.imread(tmp_path / 'out' / 'effective_lr.png').shape[1] > 1000
        mult = found['suggested']['plain']['stem']
        assert f'(gain 1): stem lr_mult={mult:g}' in text
        written = Config.fromfile(tmp_path / 'slow_stem.py')
        assert written.optim_wrapper.paramwise_cfg.stem.lr_mult == mult

    @pytest.mark.parametrize(
        'arguments, message',
        [
            (('--like', 'network'), 'error: --like network wants the network: give --plain'),
            (
                ('--plain', 'a.py', 'b', 'c'),
                'error: --plain has 3 values: wanted CONFIG',
            ),
            (('--plain', 'none.py'), 'error: no config at none.py: check the path'),
        ],
        ids=['no network', 'too many', 'no config'],
    )
    def test_refuses_a_plain_network(self, analyze, arguments, message):
        text = analyze('effective-lr', CONFIG, *arguments, code=2)
        assert text.startswith(message) and text.count('\n') == 1

    def test_refuses_before_it_measures(self, analyze, tmp_path):
        (tmp_path / 'mine.py').write_text('precious')
        text = analyze('effective-lr', CONFIG, '--write', 'mine.py', code=2)
        assert text.startswith('error: mine.py exists already')
        assert text.count('\n') == 1
        assert (tmp_path / 'mine.py').read_text() == 'precious'
        assert not (tmp_path / 'work_dirs').exists()

    def test_number_of_batches(self, analyze):
        text = analyze('effective-lr', CONFIG, '--batches', 0, code=2)
        assert 'argument --batches: 0 is too few' in text
