"""Evaluating a training form through its deploy form, which is never out of date."""

import copy
import pickle

import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

import mmorepa.pretrain  # noqa: F401
from mmorepa.backbones.kept_deploy import CALLS
from mmorepa.convs import ReparamConv2d, switch_to_deploy
from support import make_trained_like

RELATIVE = 1e-4  # outputs of two forms, float32


def build(reparam='OREPA', **kwargs):
    torch.manual_seed(0)
    cfg = dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8, reparam=reparam)
    return make_trained_like(MODELS.build({**cfg, **kwargs})).eval()


def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def evaluated(model, times=CALLS + 1):
    for _ in range(times):
        out = model(image())
    return out[0]


def runs_deployed(model):
    """Whether the next evaluation runs the deploy form: no block of the model is called."""
    called = []
    blocks = [module for module in model.modules() if isinstance(module, ReparamConv2d)]
    forwards = {block: block.forward for block in blocks}
    for block in blocks:
        block.forward = lambda x, block=block: called.append(block) or forwards[block](x)
    try:
        evaluated(model, 1)
    finally:
        for block in blocks:
            del block.forward
    return not called


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB', 'MobileOne'])
def test_same_outputs(reparam):
    model = build(reparam)
    expected = evaluated(model, 1)
    assert not runs_deployed(model)
    found = evaluated(model)
    assert runs_deployed(model)
    assert (found - expected).abs().max() < RELATIVE * expected.abs().max()
    assert torch.equal(found, evaluated(switch_to_deploy(model, inplace=False), 1))


def in_place(model):
    with torch.no_grad():
        model.layer1[0].conv1.kernel.original.weight.mul_(2)


def statistics(model):
    model.bn1.running_mean.add_(1)


def data(model):
    parameter = model.bn1.weight
    parameter.data = parameter.data + 1


def replaced_parameter(model):
    model.bn1.bias = nn.Parameter(model.bn1.bias + 1)


def replaced_module(model):
    model.layer2[0].relu = nn.Tanh()


def added_module(model):
    model.layer3.append(nn.ReLU6())
    model.layer3[-1].forward = lambda x: x + 1


def loaded(model):
    state = {key: value * 2 for key, value in model.state_dict().items()}
    model.load_state_dict(state)


def trained(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image())[0].square().mean().backward()
    optimizer.step()
    model.eval()


def swapped_through_data(model):
    """As MMEngine's EMA hook does it, between train() and eval()."""
    model.train()
    model.layer1[0].conv1.kernel.original.weight.data.mul_(2)
    model.eval()


def doubled(model):
    model.double()
    model.float()
    model.bn1.weight.data.mul_(2)
    model.float()


CHANGES = [
    in_place,
    statistics,
    data,
    replaced_parameter,
    replaced_module,
    added_module,
    loaded,
    trained,
    swapped_through_data,
    doubled,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
def test_never_out_of_date(change):
    model = build()
    before = evaluated(model)
    assert runs_deployed(model)
    change(model)
    found = evaluated(model, 1)
    expected = evaluated(copy.deepcopy(model), 1)
    assert torch.equal(found, expected)
    assert (found - before).abs().max() > RELATIVE * before.abs().max()
    again = evaluated(model)
    assert (again - expected).abs().max() < RELATIVE * expected.abs().max()


@pytest.mark.parametrize('make', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_is_not_copied(make):
    model = build()
    evaluated(model)
    assert not runs_deployed(make(model))
    assert runs_deployed(model)


def test_is_not_in_the_state_dict():
    model = build()
    keys = list(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    evaluated(model)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == names


def test_hooks_are_called():
    model = build()
    evaluated(model)
    seen = []
    handle = model.layer1.register_forward_hook(lambda *args: seen.append(args))
    evaluated(model)
    assert len(seen) == CALLS + 1
    handle.remove()
    assert runs_deployed(model)


def test_not_where_a_gradient_is_wanted():
    model = build()
    evaluated(model)
    x = image().requires_grad_()
    model(x)[0].sum().backward()
    assert x.grad.abs().max() > 0
    assert model.layer1[0].conv1.kernel.original.weight.grad is not None


def test_not_where_a_norm_is_to_learn_statistics():
    model = build()
    evaluated(model)
    model.bn1.train()
    before = model.bn1.running_mean.clone()
    evaluated(model, 1)
    assert not torch.equal(model.bn1.running_mean, before)


def test_inference_mode():
    model = build()
    expected = evaluated(model)
    with torch.inference_mode():
        found = [model(image())[0] for _ in range(CALLS + 2)][-1]
    assert torch.equal(found, expected)
    model(image())[0].sum().backward()


def test_parameters_made_under_inference_mode():
    with torch.inference_mode():
        model = build()
    evaluated(model)
    assert not runs_deployed(model)


@pytest.mark.parametrize('kwargs', [dict(reparam=None), dict(deploy=True)])
def test_without_blocks_there_is_no_other_form(kwargs):
    model = build(**kwargs)
    evaluated(model)
    assert model._kept_deploy.get(model) is None
