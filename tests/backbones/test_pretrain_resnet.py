"""OREPAResNet in mmpretrain: what is replaced, what stays, and what it squeezes to."""

import copy

import pytest
import torch
from mmpretrain.models import ResNet
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa import OREPAConv2d, squeeze, verify
from mmorepa.pretrain import OREPAResNet
from support import make_trained_like

LOGITS = 1e-4  # relative, float32
NARROW = dict(base_channels=8, stem_channels=8)


def names(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


def build(**kwargs):
    return MODELS.build(dict(type='OREPAResNet', **{**NARROW, **kwargs}))


class TestWhatIsReplaced:
    @pytest.mark.parametrize(
        'depth, blocks', [(18, 17), (34, 33), (50, 53), (101, 104), (152, 155)]
    )
    def test_number_of_blocks(self, depth, blocks):
        assert len(names(build(depth=depth), OREPAConv2d)) == blocks

    def test_basic_blocks_keep_plain_shortcuts(self):
        model = build(depth=18)
        assert names(model, nn.Conv2d) == [f'layer{i}.0.downsample.0' for i in (2, 3, 4)]

    def test_bottlenecks_have_none_left(self):
        assert names(build(depth=50), nn.Conv2d) == []

    @pytest.mark.parametrize('kwargs', [dict(deep_stem=True), dict(deep_stem=True, avg_down=True)])
    def test_stem_variants(self, kwargs):
        model = build(depth=50, **kwargs)
        assert names(model, nn.Conv2d) == []
        assert names(model, OREPAConv2d)[:3] == [f'stem.{i}.conv' for i in range(3)]

    def test_none_is_the_plain_network(self):
        model = build(depth=18, reparam=None)
        plain = ResNet(18, **NARROW)
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }

    def test_options_reach_every_block(self):
        reparam = dict(type='OREPA', branches=['original'], online=False)
        blocks = [
            module
            for module in build(depth=50, reparam=reparam).modules()
            if isinstance(module, OREPAConv2d)
        ]
        assert blocks
        assert not any(block.online for block in blocks)
        assert list(dict(blocks[-1].kernel.named_children())) == ['original']

    def test_other_convolutions_stay(self):
        with pytest.raises(ValueError, match='found no plain convolution to replace') as info:
            build(depth=18, conv_cfg=dict(type='ConvWS'))
        assert '\n' not in str(info.value)

    @pytest.mark.parametrize('reparam', ['orepa', dict(type='ACNet'), dict(branches=['original'])])
    def test_unknown_reparam(self, reparam):
        with pytest.raises(ValueError, match="choose 'OREPA' or None") as info:
            build(depth=18, reparam=reparam)
        assert '\n' not in str(info.value)

    def test_residuals_are_not_zero_initialised_by_default(self):
        assert not build(depth=18).zero_init_residual
        assert build(depth=18, zero_init_residual=True).zero_init_residual


class TestForms:
    @pytest.mark.parametrize('depth', [18, 50])
    def test_squeezed_loads_into_the_library_network(self, depth):
        torch.manual_seed(0)
        model = make_trained_like(build(depth=depth))
        squeezed = squeeze(model, inplace=False)
        plain = ResNet(depth, **NARROW)
        plain.load_state_dict(squeezed.state_dict(), strict=True)
        assert {k: v.shape for k, v in squeezed.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        assert verify(model, plain, torch.randn(2, 3, 64, 64)).within(LOGITS)

    @pytest.mark.parametrize('depth', [18, 50])
    @pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-4), (torch.float64, 1e-10)])
    def test_deploy_form_is_what_deploy_builds(self, depth, dtype, tolerance):
        torch.manual_seed(0)
        model = make_trained_like(build(depth=depth)).to(dtype).eval()
        deployed = copy.deepcopy(model)
        assert deployed.switch_to_deploy() is deployed
        deployed.switch_to_deploy()
        assert not any(isinstance(m, (_BatchNorm, OREPAConv2d)) for m in deployed.modules())
        built = build(depth=depth, deploy=True).to(dtype).eval()
        assert built.deploy
        built.load_state_dict(deployed.state_dict(), strict=True)
        assert verify(model, built, torch.randn(2, 3, 64, 64, dtype=dtype)).within(tolerance)

    def test_plain_network_has_a_deploy_form_too(self):
        model = make_trained_like(build(depth=18, reparam=None)).eval()
        deployed = copy.deepcopy(model).switch_to_deploy()
        assert not any(isinstance(m, _BatchNorm) for m in deployed.modules())
        assert verify(model, deployed, torch.randn(1, 3, 64, 64)).within(LOGITS)

    def test_full_size_keys(self):
        """At the published widths, the 7x7 stem included."""
        squeezed = squeeze(OREPAResNet(18))
        plain = ResNet(18)
        assert {k: v.shape for k, v in squeezed.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        assert squeezed.conv1.weight.shape == (64, 3, 7, 7)


class TestLibraryBehaviour:
    def test_init_weights_leaves_the_branches(self):
        model = build(depth=50)
        before = {
            f'{name}.{key}': value.clone()
            for name, module in model.named_modules()
            if isinstance(module, OREPAConv2d)
            for key, value in module.state_dict().items()
        }
        model.init_weights()
        state = model.state_dict()
        assert before
        for key, value in before.items():
            assert torch.equal(state[key], value), key

    @pytest.mark.parametrize('frozen_stages', [0, 1, 2])
    def test_frozen_stages(self, frozen_stages):
        model = build(depth=18, frozen_stages=frozen_stages)
        assert model.train() is model
        frozen = ['conv1', 'bn1'] + [f'layer{i}' for i in range(1, frozen_stages + 1)]
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != (name.split('.')[0] in frozen), name

    @pytest.mark.parametrize('frozen_stages', [0, 2])
    def test_frozen_stages_survive_deployment(self, frozen_stages):
        model = build(depth=18, frozen_stages=frozen_stages).switch_to_deploy()
        model.train()
        assert not model.conv1.weight.requires_grad
        assert model.layer4[0].conv1.weight.requires_grad

    def test_norm_eval(self):
        model = build(depth=18, norm_eval=True)
        model.train()
        assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))

    @pytest.mark.parametrize('depth', [18, 50])
    def test_activation_checkpointing_gives_the_same_gradients(self, depth):
        torch.manual_seed(0)
        model = build(depth=depth).double()
        other = build(depth=depth, with_cp=True).double()
        other.load_state_dict(model.state_dict())
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        for net in (model, other):
            net(x.clone().requires_grad_())[0].square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), other.parameters()):
            torch.testing.assert_close(a.grad, b.grad, msg=name)

    @pytest.mark.parametrize(
        'kwargs, shapes',
        [
            (dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)), [(8, 8)]),
            (dict(out_indices=(0, 1, 2, 3)), [(16, 16), (8, 8), (4, 4), (2, 2)]),
            (dict(style='caffe'), [(2, 2)]),
        ],
    )
    def test_library_arguments(self, kwargs, shapes):
        model = make_trained_like(build(depth=50, **kwargs)).eval()
        x = torch.randn(1, 3, 64, 64)
        assert [tuple(out.shape[2:]) for out in model(x)] == shapes
        assert verify(model, squeeze(model, inplace=False), x).within(LOGITS)
