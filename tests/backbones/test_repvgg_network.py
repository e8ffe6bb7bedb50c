"""OREPARepVGG: one network for every library, next to mmpretrain's RepVGG."""

import copy
from contextlib import nullcontext

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import RepVGG as TheirRepVGG
from mmpretrain.models.utils import make_divisible
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmorepa.det
import mmorepa.pretrain
import mmorepa.seg  # noqa: F401  (all three register)
from mmorepa import OREPAConv2d, squeeze, verify
from mmorepa.backbones.repvgg_network import OREPARepVGG, RepVGG, SELayer, nearest_multiple
from mmorepa.checkpoints.comparing import compare_forms
from mmorepa.convs import (
    ACNetConv2d,
    DBBConv2d,
    ExpandConv2d,
    MobileOneConv2d,
    OREPARepVGGConv2d,
    ReparamConv2d,
    RepVGGConv2d,
)
from mmorepa.errors import UserError
from mmorepa.repvgg_archs import ARCHS
from support import make_trained_like

RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-10}  # outputs of two forms
SAME_FUNCTION = 1e-5  # relative, two implementations of one network in float32
DEVIATION = 0.1  # relative, of a standard deviation over some thousand numbers

NARROW = dict(num_blocks=(2, 2, 2, 1), width_factor=(1, 1, 1, 1.5))
GROUPED = dict(NARROW, group_layer_map={2: 2, 4: 4, 5: 2}, se_cfg=None)
WITH_SE = dict(NARROW, group_layer_map=None, se_cfg=dict(ratio=4, divisor=1))
WIDTHS = [8, 16, 32, 96]
VARIANTS = {
    'narrow': dict(arch=NARROW),
    'grouped': dict(arch=GROUPED),
    'se': dict(arch=WITH_SE),
    'dilated': dict(arch=NARROW, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)),
    'stem': dict(arch=dict(NARROW, stem_channels=4), in_channels=1),
}

#: The block that each value of ``reparam`` stands for.
BLOCKS = {
    'OREPA': ('OREPA', OREPARepVGGConv2d),
    'shortcuts': (dict(type='OREPA', shortcuts=True), OREPARepVGGConv2d),
    'no_shortcuts': (dict(type='OREPA', shortcuts=False), OREPAConv2d),
    'RepVGG': ('RepVGG', RepVGGConv2d),
    'DBB': ('DBB', DBBConv2d),
    'ACNet': ('ACNet', ACNetConv2d),
    'MobileOne': (dict(type='MobileOne', copies=2), MobileOneConv2d),
    'ExpandNet': (dict(type='ExpandNet', rate=2), ExpandConv2d),
    'None': (None, nn.Conv2d),
}
reparams = pytest.mark.parametrize('reparam', [r for r, _ in BLOCKS.values()], ids=BLOCKS)
some_reparams = pytest.mark.parametrize('reparam', [None, 'RepVGG', 'OREPA', 'DBB'])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(reparam='OREPA', arch=NARROW, **kwargs):
    kwargs = dict(base_channels=8, out_indices=(0, 1, 2, 3)) | kwargs
    return OREPARepVGG(arch, reparam=reparam, **kwargs)


def theirs(arch, **kwargs):
    """mmpretrain's, which wants all keys of an arch."""
    if isinstance(arch, dict):
        arch = dict(group_layer_map=None, se_cfg=None) | arch
    kwargs = dict(base_channels=8, out_indices=(0, 1, 2, 3)) | kwargs
    return TheirRepVGG(arch, **kwargs)


def image(batch=1, channels=3, **kwargs):
    return torch.randn(batch, channels, 64, 64, **kwargs)


def image_for(model, **kwargs):
    return image(channels=model.in_channels, **kwargs)


def shapes(model):
    return {key: value.shape for key, value in model.state_dict().items()}


def count(model):
    return sum(p.numel() for p in model.parameters())


def backward(model, x):
    loss = sum(out.square().mean() for out in model(x))
    loss.backward()
    return loss


def convs_of(model):
    return [module.branch_reparam for module in model.modules() if hasattr(module, 'se_layer')]


# What is built.


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('out_indices', [(3,), (0, 1, 2, 3), (1, 3)])
def test_every_library_has_it(library, out_indices):
    cfg = dict(type=f'{library}.OREPARepVGG', arch=NARROW, base_channels=8)
    model = MODELS.build(dict(cfg, out_indices=out_indices))
    assert type(model) is OREPARepVGG
    outs = model(image())
    assert type(outs) is tuple
    wanted = [(1, WIDTHS[i], 16 >> i, 16 >> i) for i in out_indices]
    assert [tuple(out.shape) for out in outs] == wanted


def test_the_last_stage_is_the_default():
    assert [tuple(out.shape) for out in OREPARepVGG(NARROW)(image())] == [(1, 768, 2, 2)]


@pytest.mark.parametrize('reparam, kind', BLOCKS.values(), ids=BLOCKS)
def test_every_convolution_becomes_the_block(reparam, kind):
    convs = convs_of(build(reparam))
    assert len(convs) == 8
    assert {type(conv) for conv in convs} == {kind}


def test_identities_are_where_the_shape_is_kept():
    model = build('RepVGG', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 2))
    names = [n for n, m in model.named_modules() if n.endswith('.identity')]
    assert names == [
        f'stage_{stage}.{layer}.branch_reparam.identity'
        for stage, layer in [(1, 0), (1, 1), (2, 1), (3, 1)]
    ]


def test_options_reach_every_block():
    model = build(dict(type='OREPA', branches=['original', 'prior'], mode='offline'))
    for conv in convs_of(model):
        assert conv.original.conv.mode == 'offline'
        assert list(conv.original.conv.kernel._modules) == ['original', 'prior']


def test_where_chooses():
    kinds = [type(conv) for conv in convs_of(build(dict(type='DBB', where=r'stage_[34]')))]
    assert kinds == [nn.Conv2d] * 5 + [DBBConv2d] * 3


def test_squeeze_and_excitation_stays_plain():
    model = build(arch=WITH_SE)
    assert type(model.stem.se_layer.conv1.conv) is nn.Conv2d
    assert model.stage_3[0].se_layer.conv1.conv.out_channels == 32 // 4


@pytest.mark.parametrize('divisor', [1, 4, 8])
def test_widths_inside_are_mmpretrain_s(divisor):
    for value in range(1, 200):
        assert nearest_multiple(value, divisor) == make_divisible(value, divisor)


@pytest.mark.parametrize('arch', ARCHS)
def test_deploy_forms_at_full_size(arch):
    with torch.device('meta'):
        assert shapes(OREPARepVGG(arch, reparam=None, deploy=True)) == shapes(
            TheirRepVGG(arch, deploy=True)
        )


def test_no_arch_of_mmpretrain_is_missing():
    assert ARCHS.keys() == TheirRepVGG.arch_settings.keys() - {'yolox-pai-small'}


@pytest.mark.parametrize(
    'reparam, parameters',
    [
        # Counted in the released code; but for 2832 of the second, which it has and does not use.
        (None, 7032880),
        ('OREPA', 23470305),
        (dict(type='OREPA', shortcuts=False), 23460145),
    ],
    ids=['None', 'OREPA', 'no_shortcuts'],
)
def test_parameters_of_a0_are_the_release_s(reparam, parameters):
    assert count(OREPARepVGG('A0', reparam=reparam)) == parameters


def from_mmpretrain(state_dict):
    """The state dict of mmpretrain's training form in the names of ours."""
    names = {
        'branch_3x3.conv': 'original',
        'branch_3x3.norm': 'original.norm',
        'branch_1x1.conv': 'pointwise',
        'branch_1x1.norm': 'pointwise.norm',
        'branch_norm': 'identity.norm',
    }
    for old, new in names.items():
        state_dict = {
            key.replace(old, f'branch_reparam.{new}'): value for key, value in state_dict.items()
        }
    return state_dict


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(arch='A0', base_channels=64),
        dict(arch=GROUPED),
        dict(arch=WITH_SE),
        VARIANTS['dilated'],
    ],
    ids=['A0', 'grouped', 'se', 'dilated'],
)
def test_repvgg_is_mmpretrain_s(kwargs):
    other = make_trained_like(theirs(**kwargs))
    model = build('RepVGG', **kwargs)
    assert count(model) == count(other)
    model.load_state_dict(from_mmpretrain(other.state_dict()), strict=True)
    assert verify(other, model, image()).within(SAME_FUNCTION)
    x = image(batch=2)
    for net in (model, other):
        net.train()
    for a, b in zip(other(x), model(x)):
        torch.testing.assert_close(a, b, rtol=0, atol=SAME_FUNCTION * a.abs().max().item())


# The three forms.


@reparams
@pytest.mark.parametrize('dtype', RELATIVE)
@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS)
def test_the_forms_agree(variant, dtype, reparam):
    model = make_trained_like(build(reparam, **variant)).to(dtype)
    plain = build(None, **variant).to(dtype)
    squeezed = squeeze(model, inplace=False)
    assert list(shapes(squeezed).items()) == list(shapes(plain).items())
    plain.load_state_dict(squeezed.state_dict(), strict=True)

    deployed = copy.deepcopy(model)
    assert deployed.switch_to_deploy() is deployed
    before = deployed.state_dict()
    deployed.switch_to_deploy()
    assert all(torch.equal(value, before[key]) for key, value in deployed.state_dict().items())
    assert not any(isinstance(m, (_BatchNorm, ReparamConv2d)) for m in deployed.modules())

    built = build(reparam, deploy=True, **variant).to(dtype)
    assert built.deploy
    assert not model.deploy
    built.load_state_dict(deployed.state_dict(), strict=True)
    for other in (plain, built):
        assert verify(model, other, image_for(model, dtype=dtype)).within(RELATIVE[dtype])


@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS)
def test_the_deploy_form_loads_into_mmpretrain_s(variant):
    model = make_trained_like(build(**variant))
    deployed = copy.deepcopy(model).switch_to_deploy()
    other = theirs(**variant, deploy=True)
    assert shapes(deployed) == shapes(other)
    other.load_state_dict(deployed.state_dict(), strict=True)
    if 'se_cfg' in variant['arch'] and variant['arch']['se_cfg']:
        return  # mmpretrain's deploy form leaves the SE layers out when it runs
    assert verify(model, other, image_for(model)).within(RELATIVE[torch.float32])


def test_training_the_deploy_form_is_warned_of():
    model = build(arch=WITH_SE, deploy=True)
    with pytest.warns(UserWarning, match='in deploy form, without BatchNorms'):
        model.train()


# Initial values.

HEADS = {
    'mmpretrain': dict(
        type='ImageClassifier',
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=96),
    ),
    'mmdet': dict(
        type='RetinaNet',
        neck=dict(type='FPN', in_channels=WIDTHS, out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8),
    ),
    'mmseg': dict(
        type='EncoderDecoder',
        decode_head=dict(type='FCNHead', in_channels=96, channels=8, num_classes=3, in_index=3),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    ),
}


def whole(library, **kwargs):
    """A classifier, a detector, a segmentor."""
    backbone = dict(type='OREPARepVGG', arch=WITH_SE, base_channels=8, out_indices=(0, 1, 2, 3))
    with DefaultScope.overwrite_default_scope(library):
        return MODELS.build(dict(HEADS[library], backbone=dict(backbone, **kwargs)))


@pytest.mark.parametrize('reparam', ['OREPA', 'RepVGG', 'MobileOne'])
@pytest.mark.parametrize('library', HEADS)
def test_init_weights_of_a_whole_model_leaves_the_branches(library, reparam):
    model = whole(library, reparam=reparam)
    # As some configs have it: everything that is a convolution.
    model.init_cfg = dict(type='Kaiming', layer='Conv2d')
    before = copy.deepcopy(model.backbone.state_dict())
    with DefaultScope.overwrite_default_scope(library):
        model.init_weights()
    for key, value in model.backbone.state_dict().items():
        is_same = torch.equal(value, before[key])
        assert is_same == ('se_layer' not in key or key.endswith('bias')), key


@pytest.mark.parametrize('library', HEADS)
def test_whole_models_are_the_same_once_deployed(library):
    model = make_trained_like(whole(library)).eval()
    deployed = copy.deepcopy(model)
    deployed.backbone.switch_to_deploy()
    assert compare_forms(model, deployed, image()).within(RELATIVE[torch.float32])


def test_the_plain_network_starts_as_mmpretrain_s():
    model, other = build(None), theirs(NARROW)
    assert model.init_cfg == other.init_cfg
    model.init_weights()
    conv = model.stage_3[1].branch_reparam
    wanted = (2 / (conv.out_channels * 9)) ** 0.5  # Kaiming, fan out
    assert conv.weight.std().item() == pytest.approx(wanted, rel=DEVIATION)
    assert torch.equal(model.stem.norm.weight, torch.ones(8))


def test_no_init_cfg_leaves_torch_s_values():
    model = build(None, init_cfg=None)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('change', [None, 'stage_2.1.branch_reparam.identity.norm.weight'])
def test_a_pretrained_backbone_arrives_whole(change, tmp_path):
    source = make_trained_like(build()).state_dict()
    state_dict = {f'backbone.{k}': v for k, v in source.items() if k != change}
    torch.save(dict(state_dict=state_dict), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.')
    model = build(init_cfg=init_cfg)
    lacking = pytest.raises(UserError, match=f'keys missing, first {change}')
    with lacking if change else nullcontext():
        model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, source[key]), key


# Training.


def with_living_se(model):
    """``make_trained_like``, and no ReLU in an SE layer that is zero for every image."""
    for module in model.modules():
        if isinstance(module, SELayer):
            nn.init.constant_(module.conv1.conv.bias, 5.0)
    return make_trained_like(model)


@reparams
def test_every_parameter_gets_a_gradient(reparam):
    model = with_living_se(build(reparam, arch=dict(GROUPED, se_cfg=WITH_SE['se_cfg'])))
    backward(model.train(), image(batch=2))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@some_reparams
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_do_not_move(frozen_stages, reparam):
    model = with_living_se(build(reparam, arch=WITH_SE, frozen_stages=frozen_stages))
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    if frozen_stages < 4:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)
        backward(model, image(batch=2))
        optimizer.step()
    model(image(batch=2))
    parts = ['stem', 'stage_1', 'stage_2', 'stage_3', 'stage_4'][: frozen_stages + 1]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key.split('.')[0] in parts), key


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_the_plain_base_freezes_by_itself(frozen_stages):
    model = RepVGG(NARROW, base_channels=8, frozen_stages=frozen_stages)
    parts = ['stem', 'stage_1', 'stage_2', 'stage_3', 'stage_4'][: frozen_stages + 1]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (name.split('.')[0] in parts), name


@some_reparams
def test_norm_eval(reparam):
    model = build(reparam, norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(conv.training for conv in convs_of(model))
    assert all(norm.training for norm in build(reparam).train().modules())


@reparams
def test_activation_checkpointing_changes_nothing_but_the_cost(reparam):
    model = make_trained_like(build(reparam, arch=WITH_SE)).double()
    other = build(reparam, arch=WITH_SE, with_cp=True).double()
    other.load_state_dict(model.state_dict())
    runs = dict.fromkeys((model, other), 0)

    def count_run(net):
        runs[net] += 1

    x = image(batch=2, dtype=torch.float64)
    losses = []
    for net in (model, other):
        net.stage_2[1].branch_reparam.register_forward_pre_hook(lambda *_, net=net: count_run(net))
        losses.append(backward(net.train(), x))
    assert [runs[model], runs[other]] == [1, 2]
    assert torch.equal(*losses)
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14, msg=name)
    for (name, a), b in zip(model.named_buffers(), other.buffers()):
        assert torch.equal(a, b), name


@some_reparams
def test_output_stride_8(reparam):
    model = build(reparam, **VARIANTS['dilated'])
    assert [out.shape[-1] for out in model(image(batch=2))] == [16, 8, 8, 8]
    for stage, dilation in zip(model.stages, (1, 1, 2, 4)):
        for layer in getattr(model, stage):
            conv = layer.branch_reparam
            assert conv.dilation == conv.padding == (dilation, dilation)


# What is wrong gets one line.


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='A9'), "arch='A9' is not known; choose 'A0', .*'D2se', or give a dict"),
        (dict(arch=['A0']), 'is not known; choose'),
        (dict(arch=dict(num_blocks=[1])), "arch lacks 'width_factor'; wanted a dict with num_bl"),
        (dict(arch=dict(NARROW, width=3)), "arch has 'width'; wanted a dict with num_blocks, "),
        (dict(strides=(2, 2)), 'one entry a stage in each of: num_blocks 4, .* strides 2, dila'),
        (dict(out_indices=(0, 4)), 'out_indices has 4, wanted 0 to 3'),
        (dict(frozen_stages=5), 'frozen_stages has 5, wanted -1 to 4'),
        (
            dict(arch=dict(NARROW, group_layer_map={8: 2})),
            'group_layer_map has 8, wanted 1 to 7',
        ),
        (dict(reparam='orepa'), "reparam='orepa' is not known; choose 'OREPA'.* or None"),
        (dict(reparam=dict(type='ACNetV3')), "choose 'OREPA'.* or None"),
        (dict(reparam=dict(shortcuts=False)), "belongs to type='OREPA', not to None; leave it"),
        (dict(reparam=dict(type='DBB', shortcuts=False)), "type='OREPA', not to 'DBB'; leave it"),
        (dict(conv_cfg=dict(type='ConvWS')), 'found no plain convolution to replace'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), 'found no plain convolution to replace'),
        (dict(reparam=dict(type='OREPA', where='layer1')), 'found no plain convolution to repl'),
    ],
)
def test_what_is_wrong_gets_one_line(kwargs, message):
    with pytest.raises(UserError, match=message) as info:
        build(**kwargs)
    assert '\n' not in str(info.value)
