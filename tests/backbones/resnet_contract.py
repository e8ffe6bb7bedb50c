"""What holds for the OREPA ResNets of every library; a test file a library subclasses it.

pytest collects the classes there, through the subclasses, and nothing from this file.
"""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa import OREPAConv2d, squeeze, verify
from support import make_trained_like

RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-10}  # outputs of two forms
NARROW = dict(base_channels=8, stem_channels=8)
GEOMETRY = (
    'in_channels',
    'out_channels',
    'kernel_size',
    'stride',
    'padding',
    'dilation',
    'groups',
)

#: Arguments that all libraries take.
COMMON = {
    'r18': dict(depth=18),
    'r50': dict(depth=50),
    'v1c': dict(depth=50, deep_stem=True),
    'v1d': dict(depth=18, deep_stem=True, avg_down=True),
    'caffe': dict(depth=50, style='caffe'),
    'dilated': dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
}

LAST_STAGES = (False, True, True, True)
CONTEXT = dict(cfg=dict(type='ContextBlock', ratio=1 / 4), stages=LAST_STAGES)
DCN = dict(depth=50, dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=LAST_STAGES)
PLUGINS = dict(depth=50, plugins=[dict(CONTEXT, position='after_conv3')])

#: Arguments that mmdet and mmseg take.
DOWNSTREAM = {
    **COMMON,
    'dcn': DCN,
    'plugins': PLUGINS,
    'resnext': dict(type='OREPAResNeXt', depth=50, groups=8, base_width=4),
}


def names(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


def shapes(model):
    return {key: value.shape for key, value in model.state_dict().items()}


def image(size=32, batch=1, **kwargs):
    return torch.randn(batch, 3, size, size, **kwargs)


def sgd(model, **kwargs):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, **kwargs)


def train_step(model, optimizer):
    optimizer.zero_grad()
    sum(out.square().mean() for out in model(image(batch=2))).backward()
    optimizer.step()


class ResNetContract:
    """Subclasses set ``models``, the library's registry, and give a ``variant`` fixture.

    ``variant`` is a dict of arguments, the keys of a config, ``type`` among them if it is not
    OREPAResNet.
    """

    models = None
    #: The types with a stem or shortcut of their own, and the arguments that amount to them.
    aliases = {}
    #: The arguments of ResNeXt that say 4 channels a group.
    width_of_4 = {}

    def build(self, type='OREPAResNet', **kwargs):
        return self.models.build(dict(type=type, **{**NARROW, **kwargs}))

    def plain(self, type='OREPAResNet', **kwargs):
        """The library's own network."""
        return self.build(type.removeprefix('OREPA'), **kwargs)

    @pytest.fixture(autouse=True)
    def _seed(self):
        torch.manual_seed(0)

    # What is replaced, and what is not.

    @pytest.mark.parametrize(
        'depth, blocks', [(18, 17), (34, 33), (50, 53), (101, 104), (152, 155)]
    )
    def test_number_of_blocks(self, depth, blocks):
        assert len(names(self.build(depth=depth), OREPAConv2d)) == blocks

    def test_basic_blocks_keep_plain_shortcuts(self):
        model = self.build(depth=18)
        assert names(model, nn.Conv2d) == [f'layer{i}.0.downsample.0' for i in (2, 3, 4)]

    @pytest.mark.parametrize(
        'kwargs, in_stem, shortcut',
        [
            (dict(), ['conv1'], 'downsample.0'),
            (dict(deep_stem=True), 3, 'downsample.0'),
            (dict(deep_stem=True, avg_down=True), 3, 'downsample.1'),
        ],
        ids=['v1', 'v1c', 'v1d'],
    )
    def test_bottlenecks_and_stems_have_no_plain_convolution_left(self, kwargs, in_stem, shortcut):
        model = self.build(depth=50, **kwargs)
        assert names(model, nn.Conv2d) == []
        blocks = names(model, OREPAConv2d)
        stem = [name for name in blocks if not name.startswith('layer')]
        assert (stem if isinstance(in_stem, list) else len(stem)) == in_stem
        assert f'layer2.0.{shortcut}' in blocks

    def test_named_variants_are_the_arguments(self):
        assert self.aliases
        for type, kwargs in self.aliases.items():
            assert shapes(self.build(type, depth=50)) == shapes(self.build(depth=50, **kwargs))

    def test_geometry_is_the_library_s(self, variant):
        plain = self.plain(**variant)
        model = self.build(**variant)
        for name, conv in plain.named_modules():
            if isinstance(conv, nn.Conv2d):
                block = model.get_submodule(name)
                for field in GEOMETRY:
                    assert getattr(block, field) == getattr(conv, field), (name, field)

    def test_resnext_32x4d(self):
        one_stage = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
        kwargs = dict(depth=50, groups=32, base_channels=64, **self.width_of_4, **one_stage)
        model = make_trained_like(self.build('OREPAResNeXt', **kwargs))
        assert names(model, nn.Conv2d) == []
        assert [b.conv2.groups for b in model.layer1] == [32, 32, 32]
        assert model.layer1[0].conv2.weight.shape == (128, 4, 3, 3)
        plain = self.plain('OREPAResNeXt', **kwargs)
        plain.load_state_dict(squeeze(model, inplace=False).state_dict(), strict=True)
        assert verify(model, plain, image()).within(RELATIVE[torch.float32])

    def test_none_is_the_plain_network(self):
        assert shapes(self.build(depth=18, reparam=None)) == shapes(self.plain(depth=18))

    def test_options_reach_every_block(self):
        reparam = dict(type='OREPA', branches=['original'], mode='offline')
        model = self.build(depth=50, reparam=reparam)
        blocks = [m for m in model.modules() if isinstance(m, OREPAConv2d)]
        assert blocks
        assert {block.mode for block in blocks} == {'offline'}
        assert list(dict(blocks[-1].kernel.named_children())) == ['original']

    def test_other_convolutions_stay(self):
        with pytest.raises(ValueError, match='found no plain convolution to replace') as info:
            self.build(depth=18, conv_cfg=dict(type='ConvWS'))
        assert '\n' not in str(info.value)

    @pytest.mark.parametrize(
        'reparam', ['orepa', ['OREPA'], dict(type='ACNetV3'), dict(branches=['original'])]
    )
    def test_unknown_reparam(self, reparam):
        with pytest.raises(ValueError, match="choose 'OREPA'.* or None") as info:
            self.build(depth=18, reparam=reparam)
        assert '\n' not in str(info.value)

    # The three forms.

    def test_squeezed_loads_into_the_library_s_network(self, variant):
        model = make_trained_like(self.build(**variant))
        plain = self.plain(**variant)
        squeezed = squeeze(model, inplace=False)
        plain.load_state_dict(squeezed.state_dict(), strict=True)
        assert shapes(squeezed) == shapes(plain)
        assert verify(model, plain, image()).within(RELATIVE[torch.float32])

    @pytest.mark.parametrize('dtype', RELATIVE)
    @pytest.mark.parametrize('depth', [18, 50])
    def test_deploy_form_is_what_deploy_builds(self, depth, dtype):
        model = make_trained_like(self.build(depth=depth)).to(dtype)
        deployed = copy.deepcopy(model)
        assert deployed.switch_to_deploy() is deployed
        deployed.switch_to_deploy()
        assert not any(isinstance(m, (_BatchNorm, OREPAConv2d)) for m in deployed.modules())
        built = self.build(depth=depth, deploy=True).to(dtype)
        assert built.deploy
        built.load_state_dict(deployed.state_dict(), strict=True)
        assert verify(model, built, image(dtype=dtype)).within(RELATIVE[dtype])

    def test_deploy_form_of_every_variant(self, variant):
        model = make_trained_like(self.build(**variant))
        deployed = copy.deepcopy(model).switch_to_deploy()
        assert names(deployed, OREPAConv2d) == []
        assert verify(model, deployed, image()).within(RELATIVE[torch.float32])

    def test_plain_network_has_a_deploy_form_too(self):
        model = make_trained_like(self.build(depth=18, reparam=None))
        deployed = copy.deepcopy(model).switch_to_deploy()
        assert not any(isinstance(m, _BatchNorm) for m in deployed.modules())
        assert verify(model, deployed, image()).within(RELATIVE[torch.float32])

    # Initial values.

    @pytest.mark.parametrize('deploy', [False, True])
    def test_init_weights_leaves_the_blocks(self, deploy):
        model = self.build(depth=50, zero_init_residual=True, deploy=deploy)
        before = {
            f'{name}.{key}': value.clone()
            for name, module in model.named_modules()
            if isinstance(module, OREPAConv2d)
            for key, value in module.state_dict().items()
        }
        model.init_weights()
        state = model.state_dict()
        assert bool(before) != deploy
        for key, value in before.items():
            assert torch.equal(state[key], value), key
        if not deploy:
            assert not model.layer1[0].norm3.weight.any()

    def test_init_weights_loads_a_pretrained_backbone(self, tmp_path):
        source = make_trained_like(self.build(depth=18)).state_dict()
        state = {f'backbone.{key}': value for key, value in source.items()}
        torch.save(dict(state_dict={**state, 'head.fc.bias': torch.ones(2)}), tmp_path / 'a.pth')
        model = self.build(
            depth=18,
            init_cfg=dict(
                type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.'
            ),
        )
        model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, source[key]), key

    # Training.

    @pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2])
    @pytest.mark.parametrize('stem', [dict(), dict(deep_stem=True)], ids=['v1', 'v1c'])
    def test_frozen_stages_do_not_move(self, frozen_stages, stem):
        model = make_trained_like(self.build(depth=18, frozen_stages=frozen_stages, **stem))
        model.norm_eval = False
        assert model.train() is model
        before = copy.deepcopy(model.state_dict())
        train_step(model, sgd(model))
        model(image(batch=2))
        frozen = ['conv1', 'bn1', 'stem'] if frozen_stages >= 0 else []
        frozen += [f'layer{i}' for i in range(1, frozen_stages + 1)]
        for key, value in model.state_dict().items():
            is_same = torch.equal(value, before[key])
            assert is_same == (key.split('.')[0] in frozen), key

    def test_frozen_blocks_are_squeezed_once(self, monkeypatch):
        model = make_trained_like(self.build(depth=18, frozen_stages=1))
        name_of = {module: name for name, module in model.named_modules()}
        calls = Counter()

        def counted(block, squeeze=OREPAConv2d.squeeze):
            calls[name_of[block]] += 1
            return squeeze(block)

        monkeypatch.setattr(OREPAConv2d, 'squeeze', counted)
        optimizer = sgd(model)
        for _ in range(3):
            model.train()  # as MMEngine's iteration-based loop does in every step
            train_step(model, optimizer)
        assert calls['conv1'] == calls['layer1.1.conv2'] == 1
        assert calls['layer2.0.conv1'] == calls['layer4.1.conv2'] == 3
        assert shapes(model) == shapes(self.build(depth=18))

    def test_frozen_kernels_see_a_write_through_data_by_way_of_evaluation(self):
        """MMEngine's EMA swap: in evaluation one set of weights, in training the other."""
        model = make_trained_like(self.build(depth=18, frozen_stages=1)).train()
        own = model.conv1.weight.clone()
        for parameter in model.conv1.parameters():
            parameter.data.mul_(2)
        model.eval()
        with torch.no_grad():
            swapped = model.conv1.weight.clone()
        assert not torch.equal(swapped, own)
        for parameter in model.conv1.parameters():
            parameter.data.div_(2)
        model.train()
        assert torch.equal(model.conv1.weight, own)

    def test_unfrozen_blocks_train_again(self):
        model = make_trained_like(self.build(depth=18, frozen_stages=1)).train()
        optimizer = sgd(model)
        train_step(model, optimizer)
        before = copy.deepcopy(model.state_dict())
        kernel = model.conv1.weight.clone()
        model.frozen_stages = -1
        model.requires_grad_(True).train()
        train_step(model, optimizer)
        for key, value in model.conv1.named_parameters():
            assert not torch.equal(value, before[f'conv1.{key}']), key
        assert not torch.equal(model.conv1.weight, kernel)

    @pytest.mark.parametrize('frozen_stages', [0, 2])
    def test_frozen_stages_survive_deployment(self, frozen_stages):
        model = self.build(depth=18, frozen_stages=frozen_stages).switch_to_deploy()
        model.train()
        assert not model.conv1.weight.requires_grad
        assert model.layer4[0].conv1.weight.requires_grad

    def test_norm_eval(self):
        model = self.build(depth=18, norm_eval=True).train()
        assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
        assert model.layer1[0].conv1.training

    @pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')
    @pytest.mark.parametrize('depth', [18, 50])
    def test_activation_checkpointing_gives_the_same_gradients(self, depth):
        model = self.build(depth=depth).double()
        other = self.build(depth=depth, with_cp=True).double()
        other.load_state_dict(model.state_dict())
        x = image(batch=2, dtype=torch.float64)
        for net in (model, other):
            net(x.clone().requires_grad_())[-1].square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), other.parameters()):
            torch.testing.assert_close(a.grad, b.grad, msg=name)


class DownstreamContract(ResNetContract):
    """What mmdet and mmseg share beyond that."""

    width_of_4 = dict(base_width=4)

    def test_deformable_convolutions_stay(self):
        model, plain = self.build(**DCN), self.plain(**DCN)
        for i in (2, 3, 4):
            for ours, theirs in zip(getattr(model, f'layer{i}'), getattr(plain, f'layer{i}')):
                assert type(ours.conv2) is type(theirs.conv2) is not nn.Conv2d
                assert type(ours.conv2.conv_offset) is nn.Conv2d
                assert type(ours.conv1) is type(ours.conv3) is OREPAConv2d
        assert type(model.layer1[0].conv2) is OREPAConv2d

    def test_plugins_stay(self):
        kept = names(self.build(**PLUGINS), nn.Conv2d)
        assert kept
        assert all('.context_block.' in name for name in kept)
