"""The final optimizer groups: rate and decay of every kind of parameter."""

import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

import mmorepa.det
import mmorepa.pretrain
import mmorepa.seg  # noqa: F401
from mmorepa import OREPAConv2d, reparameterize, squeeze
from mmorepa.convs import DBBConv2d, ExpandConv2d, OREPARepVGGConv2d
from mmorepa.errors import UserError
from support import ROOT

LR, DECAY = 0.1, 1e-4
RECIPE = dict(bias_lr_mult=2, norm_bias_lr_mult=2, bias_decay_mult=0, norm_decay_mult=0)


def model():
    return nn.Sequential(
        OREPAConv2d(3, 4, 7, bias=False),
        nn.BatchNorm2d(4),
        OREPAConv2d(4, 4, 3, bias=True),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.SyncBatchNorm(4),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def groups(net, paramwise_cfg):
    wrapper = build_optim_wrapper(
        net,
        dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=LR, momentum=0.9, weight_decay=DECAY),
            paramwise_cfg=paramwise_cfg,
        ),
    )
    rates = {}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            rates[names[id(parameter)]] = (group['lr'], group['weight_decay'])
    return rates


@pytest.mark.parametrize(
    'name, lr, decay',
    [
        ('0.kernel.0.original.weight', LR, DECAY),
        ('0.kernel.2.separable.depthwise', LR, DECAY),
        ('0.kernel.1.average.scale', LR, DECAY),
        ('1.weight', LR, 0),
        ('1.bias', 2 * LR, 0),
        ('2.kernel.pointwise_kxk.residual', LR, DECAY),
        ('2.kernel.prior.scale', LR, DECAY),
        ('2.bias', 2 * LR, 0),
        ('3.weight', LR, 0),
        ('3.bias', 2 * LR, 0),
        ('4.weight', LR, DECAY),
        ('5.weight', LR, 0),
        ('5.bias', 2 * LR, 0),
        ('7.weight', LR, DECAY),
        ('7.bias', 2 * LR, 0),
    ],
)
def test_released_recipe(name, lr, decay):
    assert groups(model(), RECIPE)[name] == (pytest.approx(lr), decay)


@pytest.mark.parametrize('block', ['OREPA', 'DBB', 'MobileOne', 'OREPA-RepVGG'])
@pytest.mark.parametrize('custom', [{}, {'0.kernel.average': dict(decay_mult=0.5)}])
def test_depthwise_blocks(block, custom):
    """MMEngine's multiplier, which looks at a convolution's own parameters alone."""
    convs = nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Conv2d(8, 8, 3, bias=False)
    net = nn.Sequential(convs[0], nn.BatchNorm2d(8), convs[1], nn.BatchNorm2d(8))
    reparameterize(net, block)
    found = groups(net, dict(dwconv_decay_mult=0.1, custom_keys=custom))
    for name, (rate, decay) in found.items():
        is_custom = any(key in name for key in custom)
        is_depthwise = name.startswith('0.') and 'norm.' not in name
        mult = 0.5 if is_custom else 0.1 if is_depthwise else 1
        assert (rate, decay) == (LR, pytest.approx(mult * DECAY)), name


def test_a_shared_parameter_is_stepped_once():
    net = nn.Sequential(OREPAConv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    net[2].weight = net[1].weight
    with pytest.raises(UserError, match='1.weight is a parameter of 2 modules: .*bypass_duplicate'):
        groups(net, dict(bias_lr_mult=2))
    found = groups(net, dict(bias_lr_mult=2, bypass_duplicate=True))
    assert found.keys() == dict(net.named_parameters()).keys()


def test_an_optimizer_of_the_config_s_library():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        optimizer = dict(type='Lamb', lr=LR)
        cfg = dict(constructor='OREPAOptimWrapperConstructor', optimizer=optimizer)
        assert type(build_optim_wrapper(model(), cfg).optimizer).__name__ == 'Lamb'


def test_every_parameter_is_there_once():
    net = model()
    wrapper = build_optim_wrapper(
        net,
        dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=LR, weight_decay=DECAY),
            paramwise_cfg=RECIPE,
        ),
    )
    found = [id(p) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert sorted(found) == sorted(id(p) for p in net.parameters())


def test_a_custom_key_rules_alone_as_in_mmengine():
    rates = groups(model(), {**RECIPE, 'custom_keys': {'1.': dict(lr_mult=0.5)}})
    assert rates['1.bias'] == (pytest.approx(0.5 * LR), pytest.approx(DECAY))
    assert rates['3.bias'] == (pytest.approx(2 * LR), 0)


def test_without_the_rule_it_is_mmengines_constructor():
    rates = groups(model(), dict(bias_lr_mult=2, norm_decay_mult=0))
    assert rates['1.bias'] == (pytest.approx(LR), 0)
    assert rates['7.bias'] == (pytest.approx(2 * LR), pytest.approx(DECAY))


def test_nested_norms_of_a_backbone():
    net = MODELS.build(
        dict(type='mmpretrain.OREPAResNet', depth=18, base_channels=4, stem_channels=4)
    )
    rates = groups(net, RECIPE)
    norm_biases = [name for name in rates if name.endswith('bias')]
    assert len(norm_biases) == 20
    assert all(rates[name] == (pytest.approx(2 * LR), 0) for name in norm_biases)
    scales = [name for name in rates if name.endswith('scale')]
    assert len(scales) == 18 + 6 * 16
    assert all(rates[name] == (LR, DECAY) for name in scales)


def test_frozen_parameters_are_left_out():
    net = model()
    net[1].requires_grad_(False)
    assert '1.bias' not in groups(net, RECIPE)
    assert torch.is_tensor(net[1].bias)


#: One number a kind, no two products alike.
MULTIPLIERS = dict(
    stem=dict(lr_mult=0.1, decay_mult=0.5),
    stem_scale=dict(lr_mult=0.03),
    scale=dict(lr_mult=0.7, decay_mult=0),
)


@pytest.mark.parametrize(
    'name, lr, decay',
    [
        ('0.kernel.0.original.weight', 0.1, 0.5),
        ('0.kernel.1.pointwise_kxk.residual', 0.1, 0.5),
        ('0.kernel.2.separable.depthwise', 0.1, 0.5),
        ('0.kernel.0.original.scale', 0.03, 0.5),
        ('0.kernel.2.prior.scale', 0.03, 0.5),
        ('1.weight', 1, 0),
        ('1.bias', 2, 0),
        ('2.kernel.original.weight', 1, 1),
        ('2.kernel.original.scale', 0.7, 0),
        ('2.bias', 2, 0),
        ('4.weight', 1, 1),
        ('7.weight', 1, 1),
        ('7.bias', 2, 0),
    ],
)
def test_multipliers_within_the_recipe(name, lr, decay):
    found = groups(model(), {**RECIPE, **MULTIPLIERS})[name]
    assert found == pytest.approx((lr * LR, decay * DECAY))


class TestComposition:
    def test_the_stems_scales_follow_the_stem(self):
        rates = groups(model(), dict(stem=dict(lr_mult=0.1)))
        assert rates['0.kernel.0.original.weight'] == pytest.approx((0.1 * LR, DECAY))
        assert rates['0.kernel.0.original.scale'] == pytest.approx((0.1 * LR, DECAY))
        assert rates['2.kernel.original.scale'] == (LR, DECAY)

    @pytest.mark.parametrize(
        'own, scale', [({}, (4, 0.5)), (dict(lr_mult=3), (3, 0.5)), (dict(decay_mult=0), (4, 0))]
    )
    def test_the_scales_of_other_blocks_follow_these(self, own, scale):
        rates = groups(model(), dict(block=dict(lr_mult=4, decay_mult=0.5), scale=own))
        lr, decay = scale
        assert rates['2.kernel.original.weight'] == pytest.approx((4 * LR, 0.5 * DECAY))
        assert rates['2.kernel.original.scale'] == pytest.approx((lr * LR, decay * DECAY))
        for other in ('0.kernel.0.original.weight', '0.kernel.0.original.scale', '1.weight'):
            assert rates[other] == (LR, DECAY)

    def test_a_block_is_whatever_generates_its_kernel(self):
        net = nn.Sequential(
            ExpandConv2d(3, 4, 3), DBBConv2d(4, 4, 3), OREPARepVGGConv2d(4, 4, 3, padding=1)
        )
        rates = groups(net, dict(block=dict(lr_mult=4)))
        changed = {name for name, rate in rates.items() if rate != (LR, DECAY)}
        assert changed == {name for name in rates if '.kernel.' in f'.{name}'}
        assert {name.split('.')[0] for name in changed} == {'0', '2'}

    def test_multiplies_what_a_custom_key_gave(self):
        cfg = dict(custom_keys={'0.': dict(lr_mult=0.5, decay_mult=0.2)}, **MULTIPLIERS)
        rates = groups(model(), cfg)
        assert rates['0.kernel.0.original.weight'] == pytest.approx((0.05 * LR, 0.1 * DECAY))
        assert rates['0.kernel.0.original.scale'] == pytest.approx((0.015 * LR, 0.1 * DECAY))

    def test_of_patterns_and_kinds_all_count(self):
        patterns = {
            '0.*': dict(lr_mult=0.5),
            '*.scale': dict(lr_mult=0.2, decay_mult=0),
            '[37].bias': dict(lr_mult=10),
        }
        rates = groups(model(), {**RECIPE, **MULTIPLIERS, 'patterns': patterns})
        assert rates['0.kernel.0.original.weight'] == pytest.approx((0.05 * LR, 0.5 * DECAY))
        assert rates['0.kernel.0.original.scale'] == pytest.approx((0.003 * LR, 0))
        assert rates['2.kernel.original.scale'] == pytest.approx((0.14 * LR, 0))
        assert rates['3.bias'] == pytest.approx((20 * LR, 0))
        assert rates['7.weight'] == (LR, DECAY)

    def test_a_pattern_matches_whole_names(self):
        rates = groups(model(), dict(patterns={'7': dict(lr_mult=0), '7.b*': dict(lr_mult=3)}))
        assert rates['7.weight'] == (LR, DECAY)
        assert rates['7.bias'] == pytest.approx((3 * LR, DECAY))

    def test_a_stem_that_is_there_twice(self):
        net = nn.ModuleDict(dict(a=OREPAConv2d(3, 4, 7, bias=False)))
        net['b'] = net['a']
        cfg = dict(bypass_duplicate=True, stem=dict(lr_mult=0.1))
        rates = groups(net, cfg)
        assert len(rates) == len(list(net.parameters()))
        assert all(rate == pytest.approx((0.1 * LR, DECAY)) for rate in rates.values())

    def test_without_a_stem_nothing_changes(self):
        plain = squeeze(model())
        assert groups(plain, {**RECIPE, **MULTIPLIERS}) == groups(plain, RECIPE)

    def test_dicts_taken_over_from_another_library(self):
        """MMEngine adds its scope to these."""
        scope = dict(_scope_='mmdet')
        cfg = dict(
            **scope,
            stem=dict(lr_mult=0.1, **scope),
            patterns={'7.*': dict(lr_mult=0.5), **scope},
        )
        rates = groups(model(), cfg)
        assert rates['0.kernel.0.original.scale'] == pytest.approx((0.1 * LR, DECAY))
        assert rates['7.bias'] == pytest.approx((0.5 * LR, DECAY))


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(stem_lr_mult=0.1), "has 'stem_lr_mult', which does not exist"),
        (dict(stem=0.1), 'has stem=0.1: wanted a dict'),
        (dict(block=3), 'has block=3: wanted a dict'),
        (dict(stem=dict(lr=0.1)), 'stem is .*: wanted a dict with lr_mult, decay_mult or both'),
        (dict(scale=dict(lr_mult=-1)), 'scale has lr_mult=-1: wanted a number, at least 0'),
        (dict(scale=dict(lr_mult='0.1')), "scale has lr_mult='0.1': wanted a number"),
        (dict(stem=dict(lr_mult=float('nan'))), 'stem has lr_mult=nan: wanted a number'),
        (dict(patterns=['*']), 'has patterns=.*: wanted a dict'),
        (dict(patterns={'*.scale': 0.1}), r'\*.scale is 0.1: wanted a dict with'),
    ],
)
def test_wrong_rules_get_one_line(cfg, message):
    with pytest.raises(UserError, match=message) as info:
        groups(model(), cfg)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    'optimizer, field, wanted',
    [
        (dict(type='SGD', lr=0.1), 'decay_mult', 'weight_decay'),
        (dict(type='Adadelta', weight_decay=0.1), 'lr_mult', 'lr'),
    ],
)
def test_nothing_to_multiply(optimizer, field, wanted):
    cfg = dict(
        constructor='OREPAOptimWrapperConstructor',
        optimizer=optimizer,
        paramwise_cfg=dict(stem={field: 0.5}),
    )
    with pytest.raises(UserError, match=f'stem has {field}, but the optimizer has no {wanted} '):
        build_optim_wrapper(model(), cfg)


@pytest.fixture
def log():
    """The lines that MMEngine's logger got, with their levels."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((record.levelname, record.getMessage()))
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_what_is_logged(log):
    groups(model(), MULTIPLIERS)
    text = [message for _, message in log]
    in_stem, scales = 3 * 8, 3 * 6
    assert (
        f'paramwise_options -- stem (lr_mult=0.1, decay_mult=0.5): {in_stem} trainable parameters'
    ) in text
    assert any(f'stem_scale (lr_mult=0.03, decay_mult=0.5): {scales} ' in line for line in text)
    assert any('scale (lr_mult=0.7, decay_mult=0): 6 ' in line for line in text)
    assert 'paramwise_options -- 0.kernel.0.original.scale: lr=0.003, weight_decay=5e-05' in text


def test_a_rule_that_changes_nothing_is_a_warning(log):
    net = model()
    net[0].requires_grad_(False)
    groups(net, dict(stem=dict(lr_mult=0.1), patterns={'backbone.*': dict(lr_mult=0.1)}))
    warnings = [message for level, message in log if level == 'WARNING' and ': 0 ' in message]
    assert [message.split()[2] for message in warnings] == ['stem', 'stem_scale', 'backbone.*']


BACKBONE = dict(
    type='OREPAResNet',
    depth=18,
    base_channels=4,
    stem_channels=4,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='BN'),
)
CHANNELS = [4, 8, 16, 32]
RETINANET = dict(
    type='RetinaNet',
    _scope_='mmdet',
    backbone=BACKBONE,
    neck=dict(type='FPN', in_channels=CHANNELS, out_channels=8, num_outs=5),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    ),
)
PSPNET = dict(
    type='EncoderDecoder',
    _scope_='mmseg',
    backbone=dict(BACKBONE, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
    decode_head=dict(
        type='PSPHead',
        in_channels=32,
        in_index=3,
        channels=8,
        num_classes=3,
        norm_cfg=dict(type='SyncBN'),
    ),
)
#: What mmdet and mmseg configs use, and ours within.
DOWNSTREAM = dict(
    custom_keys={'bbox_head': dict(lr_mult=10), 'decode_head': dict(lr_mult=10)},
    norm_decay_mult=0,
    bias_lr_mult=2,
    bypass_duplicate=True,
    stem=dict(lr_mult=0.1),
    scale=dict(decay_mult=0),
)
IN_BACKBONE = [
    ('backbone.conv1.kernel.0.original.weight', 0.1, 1),
    ('backbone.conv1.kernel.2.separable.scale', 0.1, 1),
    ('backbone.layer1.0.conv1.kernel.original.scale', 1, 0),
    ('backbone.layer1.0.conv1.kernel.original.weight', 1, 1),
    ('backbone.bn1.weight', 1, 0),
    ('backbone.layer4.1.bn2.bias', 1, 0),
]


@pytest.mark.parametrize(
    'cfg, expected',
    [
        (
            RETINANET,
            [
                ('neck.lateral_convs.0.conv.weight', 1, 1),
                ('neck.lateral_convs.0.conv.bias', 2, 1),
                ('bbox_head.retina_cls.weight', 10, 1),
                ('bbox_head.retina_cls.bias', 10, 1),
            ],
        ),
        (
            PSPNET,
            [
                ('decode_head.conv_seg.weight', 10, 1),
                ('decode_head.bottleneck.bn.weight', 10, 1),
            ],
        ),
    ],
    ids=['retinanet', 'pspnet'],
)
def test_detector_and_segmentor(cfg, expected):
    rates = groups(MODELS.build(cfg), DOWNSTREAM)
    for name, lr, decay in IN_BACKBONE + expected:
        assert rates[name] == pytest.approx((lr * LR, decay * DECAY)), name


def test_a_frozen_stem_of_a_detector(log):
    net = MODELS.build(dict(RETINANET, backbone=dict(BACKBONE, frozen_stages=1)))
    rates = groups(net, DOWNSTREAM)
    assert not any(name.startswith('backbone.conv1.') for name in rates)
    warnings = [message for level, message in log if level == 'WARNING']
    assert 'paramwise_options -- stem (lr_mult=0.1): 0 trainable parameters' in warnings


SCHEDULES = ROOT / 'configs' / '_base_' / 'schedules'
POLY = dict(type='PolyLR', power=0.9, by_epoch=False, begin=0, end=40_000)
COSINE = dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=40_000, T_max=40_000)
STEPS = 200
RATIO = 1e-6  # relative; a chain of products in float64


def ratios(schedulers):
    """Rate of the stem over that of the head, at each of STEPS steps of a shortened schedule."""
    wrapper = build_optim_wrapper(
        model(),
        dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.01),
            paramwise_cfg=dict(stem=dict(lr_mult=0.1)),
        ),
    )
    built = []
    for scheduler in schedulers:
        scheduler = dict(scheduler, by_epoch=False, end=min(scheduler['end'], STEPS))
        scheduler.pop('convert_to_iter_based', None)
        for key, value in dict(milestones=[120, 180], T_max=STEPS).items():
            if key in scheduler:
                scheduler[key] = value
        built.append(PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper)))
    found = []
    for _ in range(STEPS - 1):
        first, last = wrapper.optimizer.param_groups[0], wrapper.optimizer.param_groups[-1]
        found.append(first['lr'] / last['lr'])
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    return found


@pytest.mark.parametrize(
    'name', ['coco_1x', 'cityscapes_40k', 'cityscapes_80k', 'imagenet_bs256_120e']
)
def test_our_schedules_keep_the_ratio(name):
    schedulers = Config.fromfile(SCHEDULES / f'{name}.py').param_scheduler
    assert ratios(schedulers) == pytest.approx([0.1] * (STEPS - 1), rel=RATIO)


@pytest.mark.parametrize(
    'scheduler, last',
    [
        (dict(POLY, eta_min=1e-4), (0.5, 1.0)),
        (dict(COSINE, eta_min=1e-4), (0.5, 1.0)),
        (dict(COSINE, eta_min_ratio=0.01), (0.1 - RATIO, 0.1 + RATIO)),
        (dict(POLY, eta_min=0), (0.1 - RATIO, 0.1 + RATIO)),
    ],
    ids=['poly-absolute', 'cosine-absolute', 'cosine-ratio', 'poly-zero'],
)
def test_an_absolute_floor_lets_the_ratio_drift(scheduler, last):
    found = ratios([scheduler])
    assert found[0] == pytest.approx(0.1)
    assert last[0] < found[-1] < last[1]


#: Of this package, in the published configs.
HOOKS = ('load_from', 'non_finite', 'safe_resume', 'squeezed_training')


@pytest.mark.parametrize(
    'ours, library',
    [
        ('coco_1x', 'mmdet::_base_/schedules/schedule_1x.py'),
        ('cityscapes_40k', 'mmseg::_base_/schedules/schedule_40k.py'),
        ('cityscapes_80k', 'mmseg::_base_/schedules/schedule_80k.py'),
    ],
)
def test_our_schedules_are_the_librarys_but_for_the_multipliers_and_the_floor(
    ours, library, tmp_path
):
    theirs = tmp_path / 'theirs.py'
    theirs.write_text(f'_base_ = [{library!r}]')
    theirs = Config.fromfile(theirs).to_dict()
    ours = Config.fromfile(SCHEDULES / f'{ours}.py').to_dict()
    assert ours['optim_wrapper'].pop('constructor') == 'OREPAOptimWrapperConstructor'
    assert set(ours['optim_wrapper'].pop('paramwise_cfg')) == {'stem'}
    for schedule in (ours, theirs):
        for scheduler in schedule['param_scheduler']:
            scheduler.pop('eta_min', None)
            scheduler.pop('_scope_', None)
    # mmseg's hooks are in its schedules, mmdet's are not.
    for name in HOOKS if library.startswith('mmseg') else ():
        assert ours['default_hooks'].pop(name)['type'].startswith('mmorepa.')
    assert ours == theirs
