"""squeeze, switch_to_deploy and verify on modules of every make."""

import copy

import pytest
import timm
import torch
import torchvision
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmpretrain.models import RepVGG
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmorepa
from mmorepa import OREPAConv2d, squeeze, switch_to_deploy, verify
from support import make_trained_like

FLOAT32 = 1e-4  # relative, over a network
FLOAT64 = 1e-10


def block(in_channels=4, out_channels=8, kernel_size=3, **kwargs):
    return nn.Sequential(
        OREPAConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **kwargs),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


@pytest.mark.parametrize('order', [3, ['left', 'right'], str.upper, ('conv', 'norm', 'act')])
def test_an_order_of_another_meaning(order):
    """HorNet's gated convolutions have a number of that name."""
    net = make_trained_like(block()).eval()
    net.order = order
    deployed = switch_to_deploy(net, inplace=False)
    assert not any(isinstance(module, _BatchNorm) for module in deployed.modules())
    assert verify(net, deployed, torch.randn(1, 4, 8, 8)).within(FLOAT32)


def test_the_blocks_of_mmpretrains_repvgg_as_a_root():
    """They have two methods, of which one only gives the kernel."""
    net = make_trained_like(RepVGG('A0'))
    net.eval()  # the library's does not return it
    deployed = switch_to_deploy(net, inplace=False)
    blocks = [module for module in deployed.modules() if isinstance(module, RepVGGBlock)]
    assert blocks
    assert all(one.deploy for one in blocks)
    assert verify(net, deployed, torch.randn(1, 3, 64, 64)).within(FLOAT32)


def network():
    torch.manual_seed(0)
    return make_trained_like(
        nn.Sequential(
            block(3, 8, 7, bias=False),
            block(8, 8, 3, groups=2, bias=False),
            nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)),
            block(6, 12, 1, bias=False),
            OREPAConv2d(12, 4, 3),
        )
    ).eval()


def kinds(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
@pytest.mark.parametrize('convert, norms', [(squeeze, 4), (switch_to_deploy, 0)])
class TestForms:
    def test_same_function(self, convert, norms, dtype, tolerance):
        model = network().to(dtype)
        changed = convert(model, inplace=False)
        assert verify(model, changed, torch.randn(2, 3, 16, 16, dtype=dtype)).within(tolerance)
        assert kinds(model, OREPAConv2d) == 4
        assert kinds(changed, OREPAConv2d) == 0
        assert kinds(changed, _BatchNorm) == norms
        assert all(p.dtype == dtype for p in changed.parameters())

    def test_in_place_and_twice(self, convert, norms, dtype, tolerance):
        model = network().to(dtype)
        assert convert(model) is model
        once = copy.deepcopy(model.state_dict())
        convert(model)
        assert list(model.state_dict()) == list(once)
        for key, value in model.state_dict().items():
            assert torch.equal(value, once[key])


def test_squeezed_keys_are_those_of_the_plain_network():
    plain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    squeezed = squeeze(block(bias=False))
    assert {k: v.shape for k, v in squeezed.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    plain.load_state_dict(squeezed.state_dict(), strict=True)


def test_block_itself_can_be_the_root():
    conv = OREPAConv2d(4, 4, 3)
    x = torch.randn(1, 4, 8, 8)
    expected = conv(x)
    assert type(switch_to_deploy(conv)) is nn.Conv2d
    torch.testing.assert_close(conv(x), expected)


def test_squeezing_keeps_mode_hooks_and_trainability():
    conv = OREPAConv2d(4, 4, 3).eval()
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    conv.requires_grad_(False)
    squeeze(conv)
    conv(torch.randn(1, 4, 8, 8))
    assert calls == [1]
    assert not conv.training
    assert not conv.weight.requires_grad
    assert squeeze(OREPAConv2d(4, 4, 3)).weight.requires_grad


def test_squeezed_model_trains_and_copies():
    model = copy.deepcopy(squeeze(network())).train()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batch_norm_without_affine_and_bias_in_the_convolution():
    model = make_trained_like(block(bias=True))
    model[1] = nn.BatchNorm2d(8, affine=False)
    model[1].running_mean.uniform_(-1, 1)
    model.eval()
    assert verify(model, switch_to_deploy(model, inplace=False), torch.randn(1, 4, 8, 8)).within()


class SharedConv(nn.Module):
    """One convolution behind two BatchNorms, as in mmdet's RetinaSepBNHead."""

    def __init__(self):
        super().__init__()
        self.first, self.second = block(4, 4), block(4, 4)
        self.second[0] = self.first[0]

    def forward(self, x):
        return self.first(x), self.second(x)


class SharedBlock(nn.Module):
    """A whole block used twice."""

    def __init__(self):
        super().__init__()
        self.first = block(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


class NormFirst(nn.Module):
    """A pre-activation block: BatchNorm and ReLU come before each convolution."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), OREPAConv2d(4, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), OREPAConv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = self.conv1(self.bn1(x).relu())
        return self.conv2(self.bn2(x).relu())


def conv_module(**kwargs):
    return ConvModule(
        4, 4, 3, conv_cfg=dict(type='OREPAConv2d'), norm_cfg=dict(type='BN'), **kwargs
    )


@pytest.mark.parametrize(
    'make, folded',
    [
        (SharedConv, 0),
        (SharedBlock, 1),
        (NormFirst, 1),
        (conv_module, 1),
        (lambda: conv_module(order=('norm', 'act', 'conv')), 0),
        (lambda: conv_module(order=('conv', 'act', 'norm')), 0),
        (lambda: nn.Sequential(OREPAConv2d(4, 4, 3), nn.GroupNorm(2, 4)), 0),
        (
            lambda: nn.Sequential(
                OREPAConv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
            ),
            0,
        ),
        (lambda: nn.Sequential(OREPAConv2d(4, 4, 3), nn.SyncBatchNorm(4)), 1),
    ],
    ids=[
        'shared convolution',
        'shared block',
        'pre-activation',
        'ConvModule',
        'ConvModule, norm first',
        'ConvModule, norm last',
        'GroupNorm',
        'no running statistics',
        'SyncBatchNorm',
    ],
)
def test_folds_where_it_may_and_nowhere_else(make, folded):
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            make_trained_like(module)
    before = kinds(model, _BatchNorm)
    deployed = switch_to_deploy(model, inplace=False)
    assert before - kinds(deployed, _BatchNorm) == folded
    assert kinds(deployed, OREPAConv2d) == 0
    assert verify(model, deployed, torch.randn(2, 4, 12, 12)).within(FLOAT32)


@pytest.mark.parametrize('wrapped', [False, True], ids=['root', 'child'])
def test_timm_reparameterizes_our_models(wrapped):
    model = network()
    model = nn.ModuleDict(dict(body=model)) if wrapped else model
    run = (lambda m, x: m['body'](x)) if wrapped else (lambda m, x: m(x))
    converted = reparameterize_model(model)
    assert kinds(model, OREPAConv2d) == 4
    assert kinds(converted, OREPAConv2d) == 0
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(run(converted, x), run(model, x), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize('score', [0.0, 1.0], ids=['detects', 'detects nothing'])
def test_detectors_are_compared_by_what_they_compute(score):
    torch.manual_seed(0)
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, score_thresh=score
    )
    make_trained_like(mmorepa.reparameterize(detector, 'OREPA', where=dict(kernel_size=3)))
    deployed = switch_to_deploy(detector, inplace=False)
    assert verify(detector, deployed, [torch.rand(3, 64, 64)]).within(FLOAT32)
    with torch.no_grad():
        next(m for m in deployed.head.modules() if isinstance(m, nn.Conv2d)).weight.mul_(1.5)
    assert not verify(detector, deployed, [torch.rand(3, 64, 64)]).within(FLOAT32)


@pytest.mark.parametrize(
    'model, message',
    [(nn.Identity(), 'do not compare'), (nn.Sequential(nn.Flatten()), 'no part of')],
)
def test_models_that_return_nothing_do_not_compare(model, message):
    model.forward = lambda x: None
    with pytest.raises(ValueError, match=message):
        verify(model, model, torch.randn(1, 2))


class OtherBlock(nn.Module):
    """A block of another package, with a conversion of its own that reads plain convolutions."""

    def __init__(self, channels=8):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.wide(x) if self.narrow is None else self.wide(x) + self.narrow(x)

    def switch_to_deploy(self):
        assert type(self.wide) is type(self.narrow) is nn.Conv2d
        with torch.no_grad():
            self.wide.weight[:, :, 1:2, 1:2] += self.narrow.weight
            self.wide.bias += self.narrow.bias
        self.narrow = None
        self.deploy = True


@pytest.mark.parametrize('twice', [False, True])
def test_other_packages_blocks_are_converted_too(twice):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Sequential(OtherBlock()), nn.BatchNorm2d(8))
    mmorepa.reparameterize(model, 'OREPA')
    make_trained_like(model)
    assert kinds(model, OREPAConv2d) == 3
    converted = switch_to_deploy(model, inplace=False)
    if twice:
        switch_to_deploy(converted)
    assert converted[1][0].narrow is None
    assert verify(model, converted, torch.randn(1, 8, 12, 12)).within(FLOAT32)


@pytest.mark.parametrize('name', ['mobileone_s0', 'repvit_m0_9'])
def test_timms_blocks_are_converted_too(name):
    torch.manual_seed(0)
    model = make_trained_like(timm.create_model(name, num_classes=4))
    mmorepa.reparameterize(model, 'OREPA', where=dict(kernel_size=3), keep_function=True)
    converted = switch_to_deploy(model, inplace=False)
    assert kinds(converted, (OREPAConv2d, _BatchNorm)) == 0
    assert verify(model, converted, torch.randn(1, 3, 64, 64)).within(FLOAT32)


def test_mmcv_fusion_gets_what_it_wants():
    """It reads the weight, and assigns the folded one: such a block is a plain convolution."""
    model = network()
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert verify(model, fused, torch.randn(1, 3, 16, 16)).within(FLOAT32)
    assert kinds(model, OREPAConv2d) == 4
    # The one without a BatchNorm behind it.
    assert kinds(fused, OREPAConv2d) == 1


def test_mmcv_efficient_evaluation_reads_the_generated_kernel():
    module = ConvModule(
        4,
        8,
        3,
        padding=1,
        conv_cfg=dict(type='OREPAConv2d'),
        norm_cfg=dict(type='BN'),
        efficient_conv_bn_eval=True,
    )
    make_trained_like(module).eval()
    x = torch.randn(1, 4, 8, 8)
    expected = module.bn(module.conv(x)).relu()
    torch.testing.assert_close(module(x), expected)
    assert module.efficient_conv_bn_eval_forward is not None


def test_half_precision_is_rounded_once():
    model = network().half()
    deployed = switch_to_deploy(model, inplace=False)
    exact = switch_to_deploy(copy.deepcopy(model).double(), inplace=False)
    for half, full in zip(deployed.parameters(), exact.parameters()):
        assert half.dtype == torch.float16
        assert torch.equal(half, full.half())


class TestVerify:
    def test_reports_differences(self):
        before = nn.Conv2d(3, 4, 1, bias=False)
        after = copy.deepcopy(before)
        after.weight.data[0] += 0.5
        x = torch.ones(1, 3, 2, 2)
        found = verify(before, after, x)
        assert found.max_abs == pytest.approx(1.5)
        assert found.relative == pytest.approx(1.5 / before(x).abs().max().item())
        assert not found.within()

    def test_counts_argmax(self):
        before, after = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        before.weight.data = torch.eye(2)
        after.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        assert verify(before, after, torch.tensor([[1.0, 0.0], [0.0, 0.0]])).argmax == 0.5

    def test_compares_in_eval_mode_and_restores_every_mode(self):
        model = network().train()
        model[0].eval()
        modes = [module.training for module in model.modules()]
        deployed = switch_to_deploy(model, inplace=False)
        statistics = model[1][1].running_mean.clone()
        assert verify(model, deployed, torch.randn(2, 3, 16, 16)).within()
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(model[1][1].running_mean, statistics)

    def test_takes_nested_outputs(self):
        class Nested(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = OREPAConv2d(3, 4, 3)

            def forward(self, x):
                out = self.conv(x)
                return dict(levels=(out, [out * 2]), name='ignored', none=None)

        model = Nested()
        assert verify(model, squeeze(model, inplace=False), torch.randn(1, 3, 8, 8)).within()

    def test_nan_never_passes(self):
        before = nn.Conv2d(3, 4, 1)
        after = copy.deepcopy(before)
        after.weight.data.fill_(float('nan'))
        assert not verify(before, after, torch.ones(1, 3, 2, 2)).within()

    def test_other_shapes_are_an_error(self):
        with pytest.raises(ValueError, match='do not compare'):
            verify(nn.Linear(2, 3), nn.Linear(2, 4), torch.ones(1, 2))


def test_public_names():
    assert mmorepa.squeeze is squeeze
    assert mmorepa.switch_to_deploy is switch_to_deploy


def test_torchvision_network_folds_completely():
    model = make_trained_like(torchvision.models.resnet18(num_classes=4)).eval()
    deployed = switch_to_deploy(model, inplace=False)
    assert kinds(deployed, _BatchNorm) == 0
    assert verify(model, deployed, torch.randn(1, 3, 64, 64)).within(FLOAT32)


def test_verify_wants_an_image():
    model = network()
    with pytest.raises(ValueError, match='give an input of at least one image'):
        verify(model, model, torch.zeros(0, 3, 16, 16))
