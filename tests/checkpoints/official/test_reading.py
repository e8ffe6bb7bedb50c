"""Checkpoints of the released code: names both ways, what they are, and what is refused.

The released code is not here. What it calls its tensors is written out below by hand, a layer of
each block type; whole networks then go there and back.
"""

import ast
import functools
import itertools
import math
import os
import runpy
import sys
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torchvision.models import resnet18

import mmorepa.pretrain  # noqa: F401
from mmorepa import verify
from mmorepa.checkpoints import load_official, read_official, to_official
from mmorepa.checkpoints.comparing import probe_image
from mmorepa.checkpoints.files import load_checkpoint
from mmorepa.checkpoints.models import build_model
from mmorepa.checkpoints.official.import_export import (
    export_official,
    import_official,
    own_config,
)
from mmorepa.checkpoints.official.networks import RepVGG, ResNet
from mmorepa.checkpoints.state_dict import misfit
from mmorepa.convs import ReparamConv2d
from mmorepa.errors import UserError
from support import ROOT, make_trained_like

CONFIGS = ROOT / 'configs' / 'imagenet'
TOOL = ROOT / 'tools' / 'import_official.py'
SIZE = 48
LOGITS = 1e-4  # of two forms, relative

RESNETS = {
    'ResNet-18': dict(type='OREPAResNet', depth=18),
    'ResNet-34': dict(type='OREPAResNet', depth=34),
    'ResNet-50': dict(type='OREPAResNet', depth=50),
    'ResNet-101': dict(type='OREPAResNet', depth=101),
    'ResNet-18-1.5x': dict(type='OREPAResNet', depth=18, base_channels=96, stem_channels=96),
    'ResNet-18-2x': dict(type='OREPAResNet', depth=18, base_channels=128, stem_channels=128),
    'ResNeXt-50': dict(type='OREPAResNeXt', depth=50, groups=32, width_per_group=4),
}
REPVGGS = {
    f'RepVGG-{arch}': dict(type='OREPARepVGG', arch=arch)
    for arch in 'A0 A1 A2 B0 B1 B1g2 B1g4 B2 B2g2 B2g4 B3 B3g2 B3g4 D2se'.split()
}
#: Those that the release's ``-a`` has; those of DingXiaoH/RepVGG are the others.
NAMED = ('RepVGG-A0', 'RepVGG-A1', 'RepVGG-A2', 'RepVGG-B1')
#: What ``reparam`` is, by TYPE.
RESNET_BLOCKS = {'base': None, 'DBB': 'DBB', 'OREPA': 'OREPA'}
BOTTLENECK_BLOCKS = {'RepVGG': 'RepVGG', 'OREPA_VGG': 'OREPA-RepVGG'}
REPVGG_BLOCKS = {'RepVGG': 'RepVGG', 'OREPA_VGG': 'OREPA'}
PLAIN_VGG_BLOCKS = {
    'base': None,
    'DBB': 'DBB',
    'OREPA': dict(type='OREPA', shortcuts=False),
}


def networks():
    """(architecture, TYPE, backbone) of what the releases can name and this package can be."""
    for arch, backbone in RESNETS.items():
        others = BOTTLENECK_BLOCKS if backbone['depth'] >= 50 else {}
        for block, reparam in (RESNET_BLOCKS | others).items():
            if (arch, block) != ('ResNeXt-50', 'OREPA_VGG'):
                yield arch, block, dict(backbone, reparam=reparam)
    for arch, backbone in REPVGGS.items():
        if arch in NAMED:
            blocks = PLAIN_VGG_BLOCKS | REPVGG_BLOCKS
        elif arch == 'RepVGG-B1g4':
            blocks = PLAIN_VGG_BLOCKS | dict(RepVGG='RepVGG')
        else:
            blocks = dict(RepVGG='RepVGG')
        for block, reparam in blocks.items():
            yield arch, block, dict(backbone, reparam=reparam)


#: Those of a backbone's arguments that :class:`ResNet` has.
FIELDS = ('depth', 'base_channels', 'groups', 'width_per_group')

#: The ready-made configs of some networks, None for a network that has none.
READY_MADE = {
    ('ResNet-18', 'base'): 'resnet18',
    ('ResNet-101', 'DBB'): 'dbb-resnet101',
    ('ResNet-18-1.5x', 'OREPA'): 'orepa-resnet18-w1.5',
    ('ResNet-18-2x', 'DBB'): 'dbb-resnet18-w2',
    ('ResNeXt-50', 'base'): 'resnext50-32x4d',
    ('ResNeXt-50', 'OREPA'): 'orepa-resnext50-32x4d',
    ('RepVGG-A0', 'base'): 'plain-repvgg-a0',
    ('RepVGG-B1g4', 'RepVGG'): 'repvgg-b1g4',
    ('RepVGG-A2', 'OREPA_VGG'): 'orepa-repvgg-a2',
    ('RepVGG-D2se', 'RepVGG'): 'repvgg-d2se',
    ('ResNet-50', 'OREPA_VGG'): None,
    ('RepVGG-A0', 'OREPA'): None,
    ('RepVGG-A0', 'DBB'): None,
    ('RepVGG-B3g2', 'RepVGG'): None,
}


def on_meta(cfg):
    """Build without memory, in no time."""
    linspace = functools.partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch('torch.linspace', linspace):
        return MODELS.build(cfg)


@functools.cache
def backbone_shapes(cfg):
    """A backbone's state dict without data, from the text of its config."""
    return on_meta(ast.literal_eval(cfg)).state_dict()


def classifier_shapes(backbone, classes=1000):
    """A state dict without data: a backbone and a linear classifier."""
    state = {f'backbone.{key}': value for key, value in backbone_shapes(repr(backbone)).items()}
    width = max(len(value) for value in state.values() if value.dim() == 1)
    state['head.fc.weight'] = torch.empty(classes, width, device='meta')
    state['head.fc.bias'] = torch.empty(classes, device='meta')
    return state


POOL = torch.rand(20_000_000, generator=torch.Generator().manual_seed(0))


def filled(state):
    """The same with values of its own in every tensor; windows of one pool of random numbers."""
    result = {}
    for i, (key, value) in enumerate(state.items()):
        if value.dtype == torch.long:
            result[key] = torch.tensor(1000 + i)
        else:
            result[key] = POOL[7 * i : 7 * i + value.numel()].view(value.shape)
    return result


def refused(message, function, *args, **kwargs):
    with pytest.raises(UserError, match=message) as info:
        function(*args, **kwargs)
    assert '\n' not in str(info.value)
    return str(info.value)


# There and back, at full size.


@pytest.mark.parametrize(
    'architecture, block, backbone', [pytest.param(*n, id='-'.join(n[:2])) for n in networks()]
)
def test_every_network_goes_there_and_back(architecture, block, backbone):
    shapes = classifier_shapes(backbone)
    state = filled(shapes)
    released = to_official(state)
    assert not any('backbone' in key or key.startswith('module.') for key in released)

    checkpoint = read_official({'state_dict': {f'module.{k}': v for k, v in released.items()}})
    assert (checkpoint.architecture, checkpoint.block) == (architecture, block)
    assert checkpoint.form == 'training'
    assert checkpoint.network.backbone == backbone
    assert not misfit(shapes, checkpoint.state_dict)
    assert all(torch.equal(checkpoint.state_dict[key], state[key]) for key in state)

    if (architecture, block) in READY_MADE:
        name, config = checkpoint.network.config, READY_MADE[architecture, block]
        assert name == (config and f'{config}_4xb64-120e_in1k.py')
        cfg = Config.fromfile(CONFIGS / name) if name else own_config(checkpoint.network, CONFIGS)
        assert not misfit(on_meta(cfg.model).state_dict(), checkpoint.state_dict)


@pytest.mark.parametrize('architecture', RESNETS | REPVGGS)
def test_deploy_form_of_every_network(architecture):
    """Here it is the same for all blocks: one convolution with bias in the place of each."""
    backbone = (RESNETS | REPVGGS)[architecture]
    state = filled(classifier_shapes(dict(backbone, reparam=None, deploy=True)))
    if architecture in RESNETS:
        blocks = RESNET_BLOCKS
    else:
        blocks = REPVGG_BLOCKS | (PLAIN_VGG_BLOCKS if architecture in NAMED else {})
    for block in blocks:
        if architecture in RESNETS:
            options = {key: value for key, value in backbone.items() if key in FIELDS}
            network = ResNet(block, 'deploy', 1000, **options)
        else:
            network = RepVGG(block, 'deploy', 1000, backbone['arch'])
        checkpoint = read_official(network.to_released(state))
        # RepVGG and OREPA_VGG are alike once they are deployed.
        expected = 'RepVGG' if block == 'OREPA_VGG' else block
        assert (checkpoint.architecture, checkpoint.block) == (architecture, expected)
        assert checkpoint.form == 'deploy'
        assert not misfit(state, checkpoint.state_dict)
        assert all(torch.equal(checkpoint.state_dict[key], state[key]) for key in state)


# The names, by hand.

NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def norm(released, ours):
    return {f'{released}.{name}': f'{ours}.{name}' for name in NORM}


def squeezed(released, ours, has_pointwise=True):
    names = {
        'origin': 'original.weight',
        'avg_conv': 'average.weight',
        'pfir_conv': 'prior.weight',
        '1x1_kxk_idconv1': 'pointwise_kxk.residual',
        '1x1_kxk_conv2': 'pointwise_kxk.weight',
        'gconv_dw': 'separable.depthwise',
        'gconv_pw': 'separable.pointwise',
    }
    if has_pointwise:
        names['1x1'] = 'pointwise.weight'
    return {released + name: f'{ours}.{value}' for name, value in names.items()}


def as_released(name, value):
    """The order in which numbers lie there; all but these three have the order of here."""
    if name.endswith('separable.depthwise'):  # filter e of channel i is number 8 i + e
        filters = [value[e, :, i] for i in range(value.shape[2]) for e in range(8)]
        return torch.stack(filters).reshape(-1, 1, 3, 3)
    if name.endswith('separable.pointwise'):
        columns = [value[:, e, i] for i in range(value.shape[2]) for e in range(8)]
        return torch.stack(columns, 1)[:, :, None, None]
    if value.dim() == 3:  # rows, one a position
        size = math.isqrt(value.shape[1])
        return torch.stack(value.unbind(1), 2).unflatten(2, (size, size))
    return value


ROWS = ['original', 'average', 'prior', 'pointwise_kxk', 'pointwise', 'separable']
VGG_ROWS = ['original', 'average', 'prior', 'pointwise_kxk', 'separable']
STEM = {
    **squeezed('weight0.weight_orepa_', 'conv1.kernel.0'),
    **squeezed('weight1.weight_orepa_', 'conv1.kernel.1'),
    **squeezed('weight2.weight_orepa_', 'conv1.kernel.2'),
    **norm('bn', 'bn1'),
}
STEM_BUFFERS = [
    f'weight{i}.{name}'
    for i in range(3)
    for name in ('weight_orepa_avg_avg', 'weight_orepa_prior', 'id_tensor')
]
BUFFERS = ['weight_orepa_avg_avg', 'weight_orepa_prior', 'id_tensor']
R18 = dict(type='OREPAResNet', depth=18)
R50 = dict(type='OREPAResNet', depth=50)
A0 = dict(type='OREPARepVGG', arch='A0')

#: A layer of each block type: its module there, tensors as (there: here), rows of ``vector`` there
#: as scales here, and buffers that are only there.
LAYERS = {
    'base': (
        dict(R18, reparam=None),
        'stage2.0.shortcut',
        {
            'conv.weight': 'layer2.0.downsample.0.weight',
            **norm('bn', 'layer2.0.downsample.1'),
        },
        {},
        [],
    ),
    'base stem': (
        dict(R18, reparam=None),
        'stage0.conv1',
        {'conv.weight': 'conv1.weight', **norm('bn', 'bn1')},
        {},
        [],
    ),
    'OREPA': (
        dict(R18, reparam='OREPA'),
        'stage3.1.conv2',
        {
            **squeezed('weight_orepa_', 'layer3.1.conv2.kernel'),
            **norm('bn', 'layer3.1.bn2'),
        },
        {'vector': [f'layer3.1.conv2.kernel.{row}.scale' for row in ROWS]},
        BUFFERS,
    ),
    'OREPA 1x1': (
        dict(R50, reparam='OREPA'),
        'stage1.0.shortcut',
        {
            'weight_or1x1_origin': 'layer1.0.downsample.0.kernel.original.weight',
            'weight_or1x1_l2i_conv1': 'layer1.0.downsample.0.kernel.pointwise_pointwise.first',
            'weight_or1x1_l2i_conv2': 'layer1.0.downsample.0.kernel.pointwise_pointwise.second',
            **norm('bn', 'layer1.0.downsample.1'),
        },
        {
            'vector': [
                'layer1.0.downsample.0.kernel.original.scale',
                'layer1.0.downsample.0.kernel.pointwise_pointwise.scale',
            ]
        },
        [],
    ),
    'OREPA stem': (
        dict(R50, reparam='OREPA'),
        'stage0.conv1',
        STEM,
        {f'weight{i}.vector': [f'conv1.kernel.{i}.{row}.scale' for row in ROWS] for i in range(3)},
        STEM_BUFFERS,
    ),
    'DBB': (
        dict(R18, reparam='DBB'),
        'stage4.0.conv1',
        {
            'dbb_origin.conv.weight': 'layer4.0.conv1.original.weight',
            **norm('dbb_origin.bn', 'layer4.0.conv1.original.norm'),
            'dbb_1x1.conv.weight': 'layer4.0.conv1.pointwise.weight',
            **norm('dbb_1x1.bn', 'layer4.0.conv1.pointwise.norm'),
            'dbb_avg.conv.weight': 'layer4.0.conv1.average.weight',
            **norm('dbb_avg.bn.bn', 'layer4.0.conv1.average.inner_norm'),
            **norm('dbb_avg.avgbn', 'layer4.0.conv1.average.norm'),
            'dbb_1x1_kxk.idconv1.weight': 'layer4.0.conv1.pointwise_kxk.residual',
            **norm('dbb_1x1_kxk.bn1.bn', 'layer4.0.conv1.pointwise_kxk.inner_norm'),
            'dbb_1x1_kxk.conv2.weight': 'layer4.0.conv1.pointwise_kxk.weight',
            **norm('dbb_1x1_kxk.bn2', 'layer4.0.conv1.pointwise_kxk.norm'),
        },
        {},
        [],
    ),
    'RepVGG': (
        dict(A0, reparam='RepVGG'),
        'stage1.1',
        {
            'rbr_dense.conv.weight': 'stage_1.1.branch_reparam.original.weight',
            **norm('rbr_dense.bn', 'stage_1.1.branch_reparam.original.norm'),
            'rbr_1x1.conv.weight': 'stage_1.1.branch_reparam.pointwise.weight',
            **norm('rbr_1x1.bn', 'stage_1.1.branch_reparam.pointwise.norm'),
            **norm('rbr_identity', 'stage_1.1.branch_reparam.identity.norm'),
        },
        {},
        [],
    ),
    'RepVGG with SE': (
        dict(A0, arch='D2se', reparam='RepVGG'),
        'stage0',
        {
            'rbr_dense.conv.weight': 'stem.branch_reparam.original.weight',
            **norm('rbr_dense.bn', 'stem.branch_reparam.original.norm'),
            'rbr_1x1.conv.weight': 'stem.branch_reparam.pointwise.weight',
            **norm('rbr_1x1.bn', 'stem.branch_reparam.pointwise.norm'),
            'se.down.weight': 'stem.se_layer.conv1.conv.weight',
            'se.down.bias': 'stem.se_layer.conv1.conv.bias',
            'se.up.weight': 'stem.se_layer.conv2.conv.weight',
            'se.up.bias': 'stem.se_layer.conv2.conv.bias',
        },
        {},
        [],
    ),
    'OREPA_VGG': (
        dict(A0, reparam='OREPA'),
        'stage0',
        {
            **squeezed('rbr_dense.weight_rbr_', 'stem.branch_reparam.original.conv.kernel', False),
            **norm('rbr_dense.bn', 'stem.branch_reparam.original.norm'),
            'rbr_1x1.conv.weight': 'stem.branch_reparam.pointwise.weight',
            **norm('rbr_1x1.bn', 'stem.branch_reparam.pointwise.norm'),
        },
        {
            'rbr_dense.vector': [
                f'stem.branch_reparam.original.conv.kernel.{row}.scale' for row in VGG_ROWS
            ]
        },
        ['rbr_dense.weight_rbr_avg_avg', 'rbr_dense.weight_rbr_prior', 'rbr_dense.id_tensor'],
    ),
    'OREPA in RepVGG': (
        dict(A0, reparam=dict(type='OREPA', shortcuts=False)),
        'stage4.0',
        {
            **squeezed('weight_orepa_', 'stage_4.0.branch_reparam.kernel'),
            **norm('bn', 'stage_4.0.norm'),
        },
        {'vector': [f'stage_4.0.branch_reparam.kernel.{row}.scale' for row in ROWS]},
        BUFFERS,
    ),
}


@pytest.mark.parametrize('backbone, module, tensors, vectors, buffers', LAYERS.values(), ids=LAYERS)
def test_names_of_a_layer(backbone, module, tensors, vectors, buffers):
    state = filled(classifier_shapes(backbone))
    released = to_official(state)
    found = {key.removeprefix(f'{module}.') for key in released if key.startswith(f'{module}.')}
    assert found == {*tensors, *vectors, *buffers}
    for there, here in tensors.items():
        expected = as_released(here, state[f'backbone.{here}'])
        assert torch.equal(released[f'{module}.{there}'], expected), there
    for there, scales in vectors.items():
        rows = torch.stack([state[f'backbone.{scale}'] for scale in scales])
        assert torch.equal(released[f'{module}.{there}'], rows)
    assert torch.equal(released['linear.weight'], state['head.fc.weight'])
    assert torch.equal(released['linear.bias'], state['head.fc.bias'])


#: (TYPE, backbone): keys of the deploy form there, and where they are here.
DEPLOYED = {
    ('base', 'ResNet-18'): {
        'stage0.conv1.conv': 'conv1',
        'stage2.0.shortcut.conv': 'layer2.0.downsample.0',
        'stage2.0.conv1.conv': 'layer2.0.conv1',
    },
    ('DBB', 'ResNet-50'): {
        'stage0.conv1.conv': 'conv1',
        'stage1.0.shortcut.conv': 'layer1.0.downsample.0',
        'stage1.0.conv1.conv': 'layer1.0.conv1',
        'stage1.0.conv2.dbb_reparam': 'layer1.0.conv2',
    },
    ('OREPA', 'ResNet-18'): {
        'stage0.conv1.or_large_reparam': 'conv1',
        'stage2.0.shortcut.conv': 'layer2.0.downsample.0',
        'stage2.0.conv1.orepa_reparam': 'layer2.0.conv1',
    },
    ('OREPA', 'ResNet-50'): {
        'stage1.0.shortcut.or1x1_reparam': 'layer1.0.downsample.0',
        'stage1.0.conv2.orepa_reparam': 'layer1.0.conv2',
        'stage1.0.conv3.or1x1_reparam': 'layer1.0.conv3',
    },
    ('OREPA_VGG', 'ResNet-50'): {
        'stage1.0.shortcut.conv': 'layer1.0.downsample.0',
        'stage1.0.conv2.rbr_reparam': 'layer1.0.conv2',
    },
    ('OREPA_VGG', 'RepVGG-A0'): {
        'stage0.rbr_reparam': 'stem.branch_reparam',
        'stage3.13.rbr_reparam': 'stage_3.13.branch_reparam',
    },
    ('OREPA', 'RepVGG-A0'): {'stage0.orepa_reparam': 'stem.branch_reparam'},
    ('base', 'RepVGG-A0'): {'stage0.conv': 'stem.branch_reparam'},
}


@pytest.mark.parametrize('block, architecture', DEPLOYED, ids='-'.join)
def test_deployed_names(block, architecture):
    backbone = (RESNETS | REPVGGS)[architecture]
    state = filled(classifier_shapes(dict(backbone, reparam=None, deploy=True)))
    if architecture in RESNETS:
        network = ResNet(block, 'deploy', 1000, backbone['depth'])
    else:
        network = RepVGG(block, 'deploy', 1000, backbone['arch'])
    released = network.to_released(state)
    for (there, here), kind in itertools.product(
        DEPLOYED[block, architecture].items(), ('weight', 'bias')
    ):
        assert torch.equal(released[f'{there}.{kind}'], state[f'backbone.{here}.{kind}'])
    assert {key.rpartition('.')[2] for key in released} == {'weight', 'bias'}


# Ready-made configs.


def test_every_named_config_exists():
    assert READY_MADE.keys() <= {(architecture, block) for architecture, block, _ in networks()}
    resnets = [
        ResNet(block, 'training', 1000, **{k: v for k, v in backbone.items() if k in FIELDS})
        for backbone, block in itertools.product(RESNETS.values(), RESNET_BLOCKS)
    ]
    repvggs = [
        RepVGG(block, 'training', 1000, backbone['arch'])
        for backbone, block in itertools.product(REPVGGS.values(), ('base', *REPVGG_BLOCKS))
    ]
    configs = [network.config for network in resnets + repvggs if network.config]
    assert len(configs) == len(set(configs)) == 7 * 3 + 10 * 3
    assert all((CONFIGS / name).is_file() for name in configs)


# Small networks: quirks, files, and what is refused.


def narrow(reparam='OREPA', classes=10, **kwargs):
    """A small classifier, away from default values."""
    backbone = dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8)
    backbone.update(kwargs, reparam=reparam)
    torch.manual_seed(0)
    widths = 64 if backbone['depth'] < 50 else 256
    model = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=widths),
    )
    return make_trained_like(MODELS.build(model)).eval()


@pytest.fixture(scope='module')
def ours():
    return narrow()


@pytest.fixture
def released(ours):
    """What the release would store of :func:`ours`."""
    return to_official(ours.state_dict())


def as_saved_in_training(state_dict):
    """What the released ``train.py`` stores."""
    return dict(
        epoch=120,
        arch='ResNet-18',
        state_dict={f'module.{key}': value for key, value in state_dict.items()},
        best_acc1=torch.tensor(72.13),
        optimizer=dict(
            state={0: dict(momentum_buffer=torch.zeros(3))},
            param_groups=[dict(lr=0.0, momentum=0.9, params=[0])],
        ),
        scheduler=dict(base_lrs=[0.1], last_epoch=600_000, T_cosine_max=600_000, _last_lr=[0.0]),
    )


def save(content, path):
    torch.save(content, path)
    return path


class TestQuirks:
    def test_groups_are_interleaved(self):
        """Row a g + b there is output channel a of group b."""
        backbone = dict(RESNETS['ResNeXt-50'], reparam='OREPA')
        state = filled(classifier_shapes(backbone))
        there = to_official(state)['stage1.0.conv2.weight_orepa_gconv_pw']
        name = 'backbone.layer1.0.conv2.kernel.separable.pointwise'
        here = as_released(name, state[name])
        groups, in_group = 32, 4
        for a, b in itertools.product(range(in_group), range(groups)):
            assert torch.equal(there[a * groups + b], here[b * in_group + a])
        assert not torch.equal(there, here)

    @pytest.mark.parametrize('value', [1.5, math.nan, math.inf])
    def test_the_row_that_is_never_read(self, value):
        """The release leaves it as it finds the memory."""
        state = filled(classifier_shapes(dict(A0, reparam='OREPA')))
        there = to_official(state)
        assert there['stage1.0.rbr_dense.vector'].shape == (5, 48)  # no identity, no such row
        vector = there['stage1.1.rbr_dense.vector']
        assert vector.shape == (6, 48)
        assert not vector[5].any()
        vector[5] = value
        checkpoint = read_official(there)
        assert checkpoint.network.spare_rows == 1 + 3 + 13
        back = to_official(checkpoint.state_dict)['stage1.1.rbr_dense.vector']
        assert torch.equal(back[:5], vector[:5])
        assert not back[5].any()

    def test_constants_by_their_formula(self, released):
        layer = 'stage1.0.conv1'
        assert torch.equal(released[f'{layer}.weight_orepa_avg_avg'], torch.full((3, 3), 1 / 9))
        assert torch.equal(released[f'{layer}.id_tensor'].flatten(1), torch.eye(8))
        prior = released[f'{layer}.weight_orepa_prior']
        assert prior.dtype == torch.float32
        for o, h, w in itertools.product(range(8), range(3), range(3)):
            position, frequency = (h, o + 1) if o < 4 else (w, o + 1 - 4)
            expected = math.cos(math.pi * (position + 0.5) * frequency / 3)
            assert prior[o, h, w].item() == pytest.approx(expected, abs=1e-7)

    @pytest.mark.parametrize('name', ['weight_orepa_prior', 'weight_orepa_avg_avg', 'id_tensor'])
    @pytest.mark.parametrize('value', [1e-4, math.nan])
    def test_constants_that_are_not(self, name, value, released):
        key = f'stage3.0.conv2.{name}'
        released[key] = released[key].clone()
        released[key].view(-1)[5] += value
        refused(
            f'{key} is not the constant that the released code computes', load_official, released
        )

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_constants_may_be_rounded(self, dtype, released):
        rounded = {key: v.to(dtype) if v.is_floating_point() else v for key, v in released.items()}
        state = load_official(rounded)
        assert state['backbone.conv1.kernel.0.original.weight'].dtype == dtype
        released['stage1.0.conv1.weight_orepa_prior'] += 1e-7
        load_official(released)

    def test_counters_of_batches(self, released):
        released['stage1.0.conv1.bn.num_batches_tracked'] = torch.tensor(5004 * 120)
        state = load_official(released)
        assert state['backbone.layer1.0.bn1.num_batches_tracked'] == 600480

    def test_no_counters_at_all(self, released):
        """As torch before 0.4.1 stored it."""
        state = load_official({k: v for k, v in released.items() if 'num_batches' not in k})
        counter = state['backbone.layer1.0.bn1.num_batches_tracked']
        assert (counter.dtype, counter.item()) == (torch.long, 0)
        del released['stage1.0.conv1.bn.num_batches_tracked']
        refused('first stage1.0.conv1.bn.num_batches_tracked', load_official, released)

    def test_parameters_and_other_containers(self, released, ours):
        parameters = {
            k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in released.items()
        }
        state = load_official(parameters)
        assert not any(value.requires_grad for value in state.values())
        assert not misfit(ours.state_dict(), state)

    @pytest.mark.parametrize('classes', [10, 1000])
    def test_number_of_classes(self, classes):
        state = filled(classifier_shapes(dict(R18, reparam='OREPA'), classes))
        network = read_official(to_official(state)).network
        assert network.model['head']['num_classes'] == classes
        assert (network.config is None) == (classes != 1000)


@pytest.mark.parametrize('form', ['whole', 'prefixed', 'bare'])
def test_files(form, released, ours, tmp_path):
    content = as_saved_in_training(released)
    if form != 'whole':
        content = content['state_dict'] if form == 'prefixed' else released
    path = save(content, tmp_path / 'ResNet-18_OREPA_best.pth.tar')
    checkpoint = read_official(path)
    assert checkpoint.meta == (dict(epoch=120) if form == 'whole' else {})
    model = narrow()
    model.load_state_dict(checkpoint.state_dict, strict=True)
    state = ours.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert load_official(str(path)).keys() == load_official(content).keys() == state.keys()


class Code:
    """Pickles to a call."""

    def __reduce__(self):
        return print, ('ran',)


def torn(path, released):
    save(released, path)
    path.write_bytes(path.read_bytes()[:20_000])
    return path


def written(path, text):
    path.write_text(text)
    return path


WANTED = r'wanted a checkpoint of JUGGHM/OREPA_CVPR2022 or DingXiaoH/RepVGG'
KEY = 'stage2.1.conv1.weight_orepa_gconv_dw'


def renamed(released):
    return {key.replace(KEY, f'{KEY}_'): value for key, value in released.items()}


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda p, r: p.with_name('no.pth'), rf'no checkpoint at .*{WANTED}'),
        (lambda p, r: written(p, 'epoch 1\n'), rf'not a whole PyTorch checkpoint .*{WANTED}'),
        (torn, rf'not a whole PyTorch checkpoint .*{WANTED}'),
        (lambda p, r: save(dict(state_dict=r, x=Code()), p), r'holds more than tensors .*print'),
        (lambda p, r: save([1], p), r'holds a list, wanted a dict'),
        (lambda p, r: save(dict(epoch=3), p), 'holds no state_dict of tensors'),
        (
            lambda p, r: save(dict(meta={}, state_dict=narrow().state_dict()), p),
            rf'a checkpoint of an OpenMMLab model \(backbone\.conv1.*{WANTED}',
        ),
        (
            lambda p, r: save(resnet18().state_dict(), p),
            rf'a plain ResNet in the names of torchvision or timm \(conv1\.weight.*{WANTED}',
        ),
        (
            lambda p, r: save({'blocks.0.attn.qkv.weight': torch.zeros(3)}, p),
            rf'a state dict of something else \(blocks\.0.*{WANTED}',
        ),
        (lambda p, r: {}, rf'holds no state_dict of tensors: .*; {WANTED}'),
        (lambda p, r: {'linear.weight': [1.0]}, rf'holds no state_dict of tensors: .*; {WANTED}'),
        (
            lambda p, r: save(renamed(r), p),
            rf'looks most like ResNet-18-0\.125x with -t OREPA in training form, but does not fit '
            rf'it: 1 keys missing, first {KEY}; 1 keys unexpected, first {KEY}_$',
        ),
        (
            lambda p, r: {k: v for k, v in r.items() if k != 'stage0.conv1.weight1.vector'},
            '1 keys missing, first stage0.conv1.weight1.vector$',
        ),
        (
            lambda p, r: {k: v for k, v in r.items() if k != 'linear.weight'},
            '-0.125x with -t OREPA .* 1 keys missing, first linear.weight',
        ),
        (
            lambda p, r: {**r, KEY: r[KEY].flatten(1)},
            rf'1 shapes differ, first {KEY} with \(128, 9\) where \(128, 1, 3, 3\) is wanted$',
        ),
        (
            lambda p, r: {**r, 'linear.weight': r['linear.weight'][0]},
            r'first linear.weight with \(64,\) where \(1000, 64\) is wanted',
        ),
        (
            lambda p, r: {k: v for k, v in r.items() if not k.startswith('stage4.1.')},
            'keys missing, first stage4.1.conv1.weight_orepa_origin',
        ),
    ],
)
def test_wrong_files(make, message, released, tmp_path):
    refused(message, load_official, make(tmp_path / 'a.pth.tar', released))


class TestOtherFunctions:
    @pytest.mark.parametrize('block', ['RepVGG', 'OREPA_VGG'])
    @pytest.mark.parametrize('form', ['training', 'deploy'])
    def test_relu_before_the_sum_of_a_basic_block(self, block, form):
        network = ResNet(block, form, 10, 34)
        state = {k: torch.zeros(shape) for k, shape in network.released_shapes().items()}
        # In deploy form the two are alike.
        named = block if form == 'training' else 'RepVGG'
        refused(
            f'with -t {named} the release puts a ReLU in front of the sum', load_official, state
        )

    @pytest.mark.parametrize('reparam', ['RepVGG', 'OREPA-RepVGG'])
    def test_nor_back(self, reparam):
        refused('puts a ReLU in front of the sum', to_official, narrow(reparam).state_dict())

    @pytest.mark.parametrize(
        'backbone',
        [
            dict(type='OREPARepVGG', arch='B1g4', reparam='OREPA'),
            dict(type='OREPAResNeXt', depth=50, reparam='OREPA-RepVGG'),
        ],
    )
    def test_grouped_convolutions(self, backbone):
        state = classifier_shapes(backbone)
        refused('with -t OREPA_VGG the release cannot run grouped', to_official, state)

    @pytest.mark.parametrize(
        'make, message',
        [
            (lambda: narrow('ACNet').state_dict(), 'does not fit it'),
            (lambda: narrow('ExpandNet').state_dict(), 'does not fit it'),
            (
                lambda: narrow(dict(type='OREPA', branches=['original', 'prior'])).state_dict(),
                'keys missing, first backbone.conv1.kernel.0.average.weight',
            ),
            (lambda: narrow(deploy=True).state_dict(), 'is in deploy form: wanted the training'),
            (
                lambda: classifier_shapes(dict(R18, type='OREPAResNetV1c')),
                'is a checkpoint of an OpenMMLab model .* wanted a classifier of this package',
            ),
            (
                lambda: narrow().backbone.state_dict(),
                'is a state dict of something else .* wanted a classifier of this package',
            ),
            (
                lambda: to_official(narrow().state_dict()),
                'is a checkpoint of the released code .* wanted a classifier of this package',
            ),
            (
                lambda: classifier_shapes(dict(A0, arch='D2se', reparam=None)),
                'unexpected, first backbone.stem.se_layer',
            ),
        ],
    )
    def test_what_the_release_has_not(self, make, message):
        refused(message, to_official, make())


class TestCommand:
    """``tools/import_official.py`` and what it stands on."""

    @pytest.fixture
    def command(self, monkeypatch, capsys):
        """Run the tool in this process; gives what it printed."""

        def call(*args):
            monkeypatch.chdir(ROOT)
            monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
            with pytest.raises(SystemExit) as info:
                runpy.run_path(str(TOOL), run_name='__main__')
            assert info.value.code == 0
            return capsys.readouterr().out

        return call

    def test_training_form_with_a_ready_config(self, command, tmp_path):
        state = filled(classifier_shapes(dict(A0, reparam='RepVGG')))
        path = save(to_official(state), tmp_path / 'RepVGG-A0-train.pth')
        output = command(path, tmp_path / 'out' / 'a0.pth')
        config = 'configs/imagenet/repvgg-a0_4xb64-120e_in1k.py'
        assert output.splitlines()[-7:] == [
            'architecture: RepVGG-A0',
            'block: RepVGG',
            'form: training',
            f'tensors: {len(state)}',
            f'wrote {tmp_path}/out/a0.pth',
            f'config {config}',
            f'next: python tools/test.py {config} {tmp_path}/out/a0.pth',
        ]
        assert [p.name for p in (tmp_path / 'out').iterdir()] == ['a0.pth']
        written = torch.load(tmp_path / 'out' / 'a0.pth', weights_only=True)
        assert written['meta']['mmorepa']['form'] == 'training'
        assert written['meta']['official'] == dict(arch='RepVGG-A0', type='RepVGG')
        assert all(torch.equal(written['state_dict'][key], state[key]) for key in state)

    @pytest.mark.parametrize('reparam, form', [('OREPA', 'training'), (None, 'plain')])
    def test_config_of_its_own(self, reparam, form, tmp_path):
        model = narrow(reparam)
        path = save(as_saved_in_training(to_official(model.state_dict())), tmp_path / 'a.pth.tar')
        done = import_official(path, tmp_path / 'b.pth', CONFIGS)
        assert done.wrote_config
        assert done.config == tmp_path / 'b.py'
        assert done.conversion is None
        content = load_checkpoint(done.out)
        assert content['meta']['mmorepa']['form'] == form
        assert content['meta']['epoch'] == 120
        cfg = Config.fromfile(done.config)
        assert cfg.train_cfg.max_epochs == 120
        built = build_model(cfg)
        built.load_state_dict(content['state_dict'], strict=True)
        assert verify(model, built, probe_image(SIZE), mode='tensor').max_abs == 0

    @pytest.mark.parametrize('reparam', ['OREPA', 'DBB', None])
    def test_deploy(self, reparam, tmp_path):
        model = narrow(reparam)
        path = save(as_saved_in_training(to_official(model.state_dict())), tmp_path / 'a.pth.tar')
        done = import_official(path, tmp_path / 'b.pth', CONFIGS, deploy=True, probe_size=SIZE)
        assert done.conversion.agreement.within(LOGITS)
        content = load_checkpoint(done.out)
        assert content['meta']['mmorepa']['form'] == 'deploy'
        assert content['meta']['epoch'] == 120
        built = build_model(Config.fromfile(done.config))
        built.load_state_dict(content['state_dict'], strict=True)
        assert not any(isinstance(module, ReparamConv2d) for module in built.modules())
        assert verify(model, built, probe_image(SIZE), mode='tensor').within(LOGITS)
        assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth.tar', 'b.pth', 'b.py']

    def test_file_in_deploy_form(self, command, tmp_path):
        model = narrow(deploy=True)
        network = ResNet('OREPA', 'deploy', 10, 18, 8)
        path = save(network.to_released(model.state_dict()), tmp_path / 'deploy.pth')
        lines = command(path, tmp_path / 'b.pth', '--probe-size', SIZE).splitlines()
        assert lines[:3] == ['architecture: ResNet-18-0.125x', 'block: OREPA', 'form: deploy']
        config = os.path.relpath(tmp_path / 'b.py', ROOT)
        assert lines[-2:] == [
            f'wrote {config}, the config that builds it',
            f'next: python tools/test.py {config} {tmp_path}/b.pth',
        ]
        built = build_model(Config.fromfile(tmp_path / 'b.py'))
        built.load_state_dict(load_checkpoint(tmp_path / 'b.pth')['state_dict'], strict=True)
        assert verify(model, built, probe_image(SIZE), mode='tensor').max_abs == 0

    def test_the_way_back(self, command, ours, tmp_path):
        path = save(
            dict(meta=dict(epoch=7), state_dict=ours.state_dict()), tmp_path / 'epoch_7.pth'
        )
        out = tmp_path / 'back.pth.tar'
        output = command(path, out, '--to-official')
        assert 'ResNet-18-0.125x is not among what -a takes there' in output
        assert output.splitlines()[-1] == (
            f'next: python test.py train {out} -a ResNet-18-0.125x -t OREPA'
        )
        content = torch.load(out, weights_only=True)
        assert sorted(content) == ['arch', 'epoch', 'state_dict']
        assert (content['arch'], content['epoch']) == ('ResNet-18-0.125x', 7)
        assert all(key.startswith('module.') for key in content['state_dict'])
        state = load_official(out)
        assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())

    def test_rows_that_are_left_out_are_told(self, command, tmp_path):
        state = filled(classifier_shapes(dict(A0, reparam='OREPA')))
        path = save(dict(state_dict=state), tmp_path / 'a0.pth')
        back = tmp_path / 'back.pth.tar'
        output = command(path, back, '--to-official')
        assert 'one row of `vector` in 17 blocks, which the release never reads: zeros' in output
        assert 'is not among' not in output
        output = command(back, tmp_path / 'again.pth')
        assert 'left out: one row of `vector` in 17 blocks' in output
        written = load_checkpoint(tmp_path / 'again.pth')['state_dict']
        assert all(torch.equal(written[key], value) for key, value in state.items())

    def test_wrong_file_is_one_line_and_nothing_is_written(self, run_forked, tmp_path):
        path = save(resnet18().state_dict(), tmp_path / 'resnet18.pth')
        output = run_forked(ROOT, TOOL, path, tmp_path / 'b.pth', code=2)
        assert output.startswith(f'error: {path} is a plain ResNet in the names of torchvision')
        assert len(output.splitlines()) == 1
        assert [p.name for p in tmp_path.iterdir()] == ['resnet18.pth']

    @pytest.mark.parametrize('name', ['b.pth', 'b.py'])
    def test_existing_files(self, name, released, tmp_path):
        path = save(released, tmp_path / 'a.pth.tar')
        (tmp_path / name).write_text('precious')
        message = f'{name} exists already: choose another name or pass --force'
        refused(message, import_official, path, tmp_path / 'b.pth', CONFIGS)
        assert (tmp_path / name).read_text() == 'precious'
        assert len(list(tmp_path.iterdir())) == 2
        import_official(path, tmp_path / 'b.pth', CONFIGS, force=True)
        assert load_checkpoint(tmp_path / 'b.pth')

    def test_its_own_input(self, released, ours, tmp_path):
        path = save(released, tmp_path / 'a.pth')
        for force in (False, True):
            refused('choose another name', import_official, path, path, CONFIGS, force=force)
            refused('choose another name', export_official, path, path, force=force)
        refused('no name for a checkpoint', import_official, path, tmp_path / 'a.py', CONFIGS)
        mine = save(ours.state_dict(), tmp_path / 'ours.pth')
        refused('exists already', export_official, mine, path)
        assert load_official(path).keys() == ours.state_dict().keys()
