"""``conv_cfg=dict(type='OREPAConv2d')`` in networks of the three libraries."""

from collections import Counter

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa import OREPAConv2d, switch_to_deploy, verify
from support import make_trained_like

RELATIVE = 1e-4  # outputs of two forms, float32

OREPA = dict(conv_cfg=dict(type='OREPAConv2d'))
WITH_BN = dict(OREPA, norm_cfg=dict(type='BN'))
NARROW = dict(base_channels=8, stem_channels=8)
TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), **NARROW)


def images():
    return torch.randn(2, 3, 32, 32)


def features():
    return [torch.randn(2, 8, size, size) for size in (16, 8, 4)]


def hrnet_stage(block, *channels):
    branches = len(channels)
    return dict(
        num_modules=1,
        num_branches=branches,
        block=block,
        num_blocks=(1,) * branches,
        num_channels=channels,
    )


FPN = dict(
    type='FPN',
    in_channels=[8, 8, 8],
    out_channels=8,
    num_outs=4,
    add_extra_convs='on_input',
    **WITH_BN,
)
RETINA_HEAD = dict(
    type='RetinaHead',
    num_classes=3,
    in_channels=8,
    feat_channels=8,
    stacked_convs=2,
    anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16, 32]),
    **WITH_BN,
)

#: What to build, what to feed it, and the convolutions that the library makes without conv_cfg.
NETWORKS = {
    'FPN': (dict(_scope_='mmdet', **FPN), features, set()),
    'RetinaHead': (
        dict(_scope_='mmdet', **RETINA_HEAD),
        features,
        {'retina_cls', 'retina_reg'},
    ),
    'RetinaNet': (
        dict(
            _scope_='mmdet',
            type='RetinaNet',
            backbone=dict(type='ResNet', depth=18, norm_eval=False, **NARROW, **OREPA),
            neck=dict(FPN, in_channels=[8, 16, 32, 64], start_level=1, num_outs=3),
            bbox_head=RETINA_HEAD,
        ),
        images,
        {'retina_cls', 'retina_reg'},
    ),
    'HRNet': (
        dict(
            _scope_='mmdet',
            type='HRNet',
            extra=dict(
                stage1=hrnet_stage('BOTTLENECK', 4),
                stage2=hrnet_stage('BASIC', 4, 8),
                stage3=hrnet_stage('BASIC', 4, 8, 8),
                stage4=hrnet_stage('BASIC', 4, 8, 8, 8),
            ),
            norm_eval=False,
            **OREPA,
        ),
        images,
        set(),
    ),
    'Res2Net': (
        dict(
            _scope_='mmdet',
            type='Res2Net',
            depth=50,
            base_width=4,
            norm_eval=False,
            **TWO_STAGES,
            **OREPA,
        ),
        images,
        set(),
    ),
    'ResNeSt': (
        dict(_scope_='mmdet', type='ResNeSt', depth=50, norm_eval=False, **TWO_STAGES, **OREPA),
        images,
        {'fc1', 'fc2'},
    ),
    'CSPDarknet': (
        dict(
            _scope_='mmdet',
            type='CSPDarknet',
            deepen_factor=0.33,
            widen_factor=0.125,
            **OREPA,
        ),
        images,
        set(),
    ),
    'UNet': (
        dict(
            _scope_='mmseg',
            type='UNet',
            base_channels=4,
            num_stages=3,
            strides=(1, 1, 1),
            enc_num_convs=(2, 2, 2),
            dec_num_convs=(2, 2),
            downsamples=(True, True),
            enc_dilations=(1, 1, 1),
            dec_dilations=(1, 1),
            upsample_cfg=dict(type='InterpConv', **OREPA),  # UNet keeps conv_cfg from it
            **OREPA,
        ),
        images,
        set(),
    ),
    'PSPHead': (
        dict(
            _scope_='mmseg',
            type='PSPHead',
            in_channels=8,
            in_index=2,
            channels=8,
            pool_scales=(1, 2),
            num_classes=3,
            **WITH_BN,
        ),
        features,
        {'conv_seg'},
    ),
    'ResNet': (
        dict(_scope_='mmpretrain', type='ResNet', depth=18, **NARROW, **OREPA),
        images,
        set(),
    ),
}


def tensors(output) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for item in output for tensor in tensors(item)]


def blocks(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, OREPAConv2d)}


@pytest.fixture(params=NETWORKS)
def network(request):
    """(model, its input, names of the convolutions that stay plain)"""
    torch.manual_seed(0)
    cfg, make_input, plain = NETWORKS[request.param]
    return MODELS.build(cfg), make_input(), plain


@pytest.fixture
def squeezed(monkeypatch):
    """Counts the calls of ``OREPAConv2d.squeeze`` by block."""
    calls = Counter()

    def counted(block, squeeze=OREPAConv2d.squeeze):
        calls[block] += 1
        return squeeze(block)

    monkeypatch.setattr(OREPAConv2d, 'squeeze', counted)
    return calls


class TestNetworks:
    def test_trains(self, network):
        model, x, plain = network
        convs = [name for name, m in model.named_modules() if type(m) is nn.Conv2d]
        assert blocks(model)
        assert {name.rpartition('.')[2] for name in convs} == plain
        model.train()
        sum(out.square().mean() for out in tensors(model(x))).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

    def test_init_weights_leaves_the_branches(self, network):
        model, *_ = network
        model.requires_grad_(False)  # so that kernels are kept, where they could be written to
        before = {
            (name, key): value.clone()
            for name, block in blocks(model).items()
            for key, value in block.state_dict().items()
        }
        model.init_weights()
        for (name, key), value in before.items():
            block = model.get_submodule(name)
            assert torch.equal(block.state_dict()[key], value), (name, key)
            assert torch.equal(block.weight, block.squeeze()), name

    def test_deploy_form_agrees(self, network):
        model, x, _ = network
        make_trained_like(model)
        deployed = switch_to_deploy(model, inplace=False)
        assert not blocks(deployed)
        norms = [name for name, m in deployed.named_modules() if isinstance(m, _BatchNorm)]
        # Res2Net holds some in a list of their own, not behind their convolutions.
        assert [name for name in norms if '.bns.' not in name] == []
        assert verify(model, deployed, x).within(RELATIVE)

    @pytest.mark.parametrize('freeze', [True, False], ids=['frozen', 'eval'])
    def test_fixed_weights_are_squeezed_once(self, network, squeezed, freeze):
        model, x, _ = network
        model.requires_grad_(not freeze).eval()
        repeat = nn.Module.__call__ if freeze else torch.no_grad()(nn.Module.__call__)
        for _ in range(3):
            repeat(model, x)
        assert dict(squeezed) == dict.fromkeys(blocks(model).values(), 1)

    def test_what_is_frozen_in_training_mode_is_squeezed_in_every_pass(self, network, squeezed):
        """It may follow another network, by writes that nothing counts."""
        model, x, _ = network
        model.requires_grad_(False).train()
        for _ in range(3):
            model(x)
        assert set(squeezed) == set(blocks(model).values())
        # A head runs its layers on several levels.
        assert all(calls in (3, 9) for calls in squeezed.values())


@pytest.mark.parametrize(
    'kernel_size, kwargs, match',
    [
        (2, dict(), 'kernel_size=2 is not odd and square; use nn.Conv2d'),
        ((1, 7), dict(), r'kernel_size=\(1, 7\) is not odd and square; use nn.Conv2d'),
        (3, dict(groups=3), 'must both be multiples of groups=3'),
    ],
)
def test_layer_that_cannot_take_it_says_so_in_one_line(kernel_size, kwargs, match):
    with pytest.raises(ValueError, match=match) as info:
        ConvModule(4, 4, kernel_size, **kwargs, **WITH_BN)
    assert '\n' not in str(info.value)


def test_deformable_convolutions_cannot_take_it():
    cfg = dict(
        type='ResNet',
        depth=50,
        dcn=dict(type='DCN', deform_groups=1),
        stage_with_dcn=(False, False, False, True),
    )
    with pytest.raises(AssertionError, match='^conv_cfg must be None for DCN$'):
        MODELS.build(dict(cfg, _scope_='mmdet', **OREPA))
