"""Copies, pickles, half precision and channels_last, of a network in every form."""

import copy
import io
import pickle

import pytest
import torch
from mmpretrain.registry import MODELS

import mmorepa.pretrain  # noqa: F401
from mmorepa import squeeze, switch_to_deploy
from support import make_trained_like

HALF = 0.02  # relative, of outputs; 11 bits through twenty layers
SAME = 1e-4  # relative, of outputs and gradients; float32 in another memory format

NETWORKS = {
    'OREPA': dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8),
    'DBB': dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8, reparam='DBB'),
    'RepVGG': dict(type='OREPARepVGG', arch='A0', base_channels=8),
}
FORMS = {'training': lambda model: model, 'plain': squeeze, 'deploy': switch_to_deploy}


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
    'torch.save': saved_and_loaded,
}


def build(network, form='training', **options):
    torch.manual_seed(0)
    model = make_trained_like(MODELS.build(dict(NETWORKS[network], **options)))
    # Statistics that fit the images, or half precision overflows.
    for module in model.modules():
        if hasattr(module, 'momentum'):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(image(32))
    return FORMS[form](model).eval()


def image(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def evaluated(model, x):
    """The output, which does not depend on how often the model was called."""
    with torch.no_grad():
        first, *others = [model(x)[-1] for _ in range(3)]
    assert all(torch.equal(first, other) for other in others)
    return first


def distance(found, expected):
    return (found.float() - expected).abs().max() / expected.abs().max()


every_network = pytest.mark.parametrize('network', NETWORKS)
every_form = pytest.mark.parametrize('form', FORMS)


@every_network
@every_form
@pytest.mark.parametrize('clone', COPIES)
def test_copies_are_whole_and_apart(network, form, clone):
    model = build(network, form)
    expected = evaluated(model, image())
    other = COPIES[clone](model)
    assert torch.equal(evaluated(other, image()), expected)
    assert {type(a) for a in other.modules()} == {type(a) for a in model.modules()}
    # What the copy is taught, it evaluates, and the model does not know of.
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    assert distance(evaluated(other, image()), expected) > 0.1
    assert torch.equal(evaluated(model, image()), expected)


@every_network
@pytest.mark.parametrize('clone', ['deepcopy', 'pickle'])
def test_copied_with_activation_checkpointing(network, clone):
    """What is computed again is the copy's own."""
    model = build(network, with_cp=True)
    other = COPIES[clone](model).train()
    out = other(image().requires_grad_())[-1]
    out.square().mean().backward()
    assert not any(p.grad is not None for p in model.parameters())
    assert sum(p.grad is not None for p in other.parameters()) > 20


@every_network
@every_form
def test_half(network, form):
    model = build(network, form)
    expected = evaluated(model, image())
    model.half()
    assert all(p.dtype == torch.float16 for p in model.parameters())
    found = evaluated(model, image().half())
    assert found.dtype == torch.float16
    assert distance(found, expected) < HALF


@every_network
@every_form
def test_channels_last(network, form):
    """Outputs, gradients and a step are those of the ordinary format, whatever is held."""
    model = build(network, form)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = image().contiguous(memory_format=torch.channels_last)
    assert distance(evaluated(other, x), evaluated(model, image())) < SAME
    for net, batch in ((model, image()), (other, x)):
        net.eval()(batch)[-1].square().mean().backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and a.grad.any():
            assert distance(b.grad, a.grad) < SAME, name
