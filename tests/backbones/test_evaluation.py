"""An evaluated network is the one at hand, however often it was called before."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmorepa.pretrain  # noqa: F401
from support import make_trained_like

RESNET = dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8)
NETWORKS = {
    'OREPA': RESNET,
    'OREPA squeezed': dict(RESNET, reparam=dict(type='OREPA', mode='squeezed')),
    'ExpandNet': dict(RESNET, reparam='ExpandNet'),
    'DBB': dict(RESNET, reparam='DBB'),
    'RepVGG': dict(type='OREPARepVGG', arch='A0', base_channels=8),
}
SAME = 1e-6  # relative; the same operations, on values made in another order


@pytest.fixture(params=NETWORKS)
def build(request):
    """Makes the network, after so many evaluations."""

    def make(calls=0):
        torch.manual_seed(0)
        model = make_trained_like(MODELS.build(NETWORKS[request.param])).eval()
        with torch.no_grad():
            for _ in range(calls):
                model(image())
        return model

    return make


def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def all_stages(model):
    model.out_indices = (0, 1, 2, 3)


def other_eps(model):
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = 0.5


def other_statistics(model):
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_var.mul_(2)


def other_forward(model):
    forward = model.forward
    model.forward = lambda x: [out * 2 for out in forward(x)]


def other_forward_of_a_layer(model):
    layer = next(module for module in model.modules() if isinstance(module, _BatchNorm))
    layer.forward = lambda x: x * 0.5


def hook(model):
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    last.register_forward_hook(lambda module, args, out: out * 2)


def half_of_the_branches(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith('.weight') or 'bn' not in name:
                parameter.mul_(0.9)


CHANGES = [
    all_stages,
    other_eps,
    other_statistics,
    other_forward,
    other_forward_of_a_layer,
    hook,
    half_of_the_branches,
]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= SAME * b.abs().max()


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_change_after_five_evaluations_counts(build, change):
    model, fresh = build(calls=5), build()
    before = model(image())
    change(model)
    change(fresh)
    expected = fresh(image())
    for _ in range(3):
        assert_same(model(image()), expected)
    assert len(expected) != len(before) or not torch.allclose(expected[-1], before[-1])


@torch.no_grad()
def test_autocast_is_that_of_the_first_call(build):
    fresh, model = build(), build(calls=5)
    with torch.autocast('cpu', torch.bfloat16):
        first = fresh(image())
        for _ in range(4):
            assert_same(fresh(image()), first)
        assert_same(model(image()), first)
    exact = build()(image())
    assert not torch.equal(first[-1].float(), exact[-1])
    assert_same(fresh(image()), exact)


@torch.no_grad()
def test_nothing_is_made_beside_the_network(build):
    """No second network: modules and what state dicts hold stay as they are."""
    model, fresh = build(calls=5), build()
    assert [name for name, _ in model.named_modules()] == [n for n, _ in fresh.named_modules()]
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]
    for (name, a), b in zip(model.state_dict().items(), fresh.state_dict().values()):
        assert torch.equal(a, b), name
    assert model.__dict__.keys() == fresh.__dict__.keys()


@torch.no_grad()
def test_a_key_encoder_follows(build):
    """As in MoCo and BYOL: a frozen copy in training mode, written to through ``.data``."""
    model = build().train()
    follower = ExponentialMovingAverage(model, momentum=0.5).train()
    for _ in range(3):
        for parameter in model.parameters():
            parameter.add_(0.1)
        before = follower(image())
        follower.update_parameters(model)
        fresh = copy.deepcopy(follower).train()
        assert_same(follower(image()), fresh(image()))
        assert not torch.allclose(before[-1], fresh(image())[-1])


@pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
def test_evaluation_between_a_pass_and_its_backward_pass(build, training):
    """As a hook may do that evaluates in the midst of a step."""
    alone, model = build().train(training), build().train(training)
    for net in (alone, model):
        loss = net(image())[-1].square().mean()
        if net is model and not training:
            with torch.no_grad():
                net(image())
        loss.backward()
    for (name, a), b in zip(model.named_parameters(), alone.parameters()):
        assert (a.grad is None) == (b.grad is None), name
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
