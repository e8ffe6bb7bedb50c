"""The final optimizer groups: rate and decay of every kind of parameter."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

import mmorepa.pretrain  # noqa: F401
from mmorepa import OREPAConv2d

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
