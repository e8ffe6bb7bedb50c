"""Tools that count operations and parameters."""

import copy

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmorepa import reparameterize, squeeze

BLOCKS = [
    dict(type='OREPA', mode='online'),
    dict(type='OREPA', mode='squeezed'),
    dict(type='ExpandNet', mode='online'),
    dict(type='ExpandNet', mode='squeezed'),
    dict(type='TweakedOREPA'),
]
every = pytest.mark.parametrize('block', BLOCKS, ids=lambda block: ' '.join(block.values()))


def image():
    return torch.randn(2, 3, 16, 16)


def plain_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )


def flops(model, with_grad=False):
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(with_grad):
        out = model(image())
        if with_grad:
            out.square().mean().backward()
    return counter.get_flop_counts()['Global']


@every
def test_evaluation_counts_as_the_plain_network_does(block):
    """After the first pass, in which kernels are generated."""
    plain = plain_network().eval()
    model = reparameterize(copy.deepcopy(plain), block).eval()
    with torch.no_grad():
        model(image())
    expected = flops(plain)
    assert sum(expected.values()) > 0
    for _ in range(2):
        assert flops(model) == expected


@pytest.mark.parametrize('kind', ['OREPA', 'ExpandNet'])
def test_squeezed_training_counts_as_the_plain_network_does(kind):
    """Forward and backward; generating and pulling back are parts of the step."""
    plain = plain_network()
    model = reparameterize(copy.deepcopy(plain), dict(type=kind, mode='squeezed'))
    expected = flops(plain, with_grad=True)
    assert len(expected) == 2  # forward and backward
    for _ in range(2):
        model.zero_grad()
        for module in model:
            module.has_gradient = False
        assert flops(model, with_grad=True) == expected


@every
@pytest.mark.parametrize('evaluated', [False, True], ids=['fresh', 'evaluated'])
def test_complexity_of_mmengine(block, evaluated):
    """It traces the model, and finds operations by their names."""
    plain = plain_network().eval()
    model = reparameterize(copy.deepcopy(plain), block).eval()
    if evaluated:
        with torch.no_grad():
            model(image())
    expected = get_model_complexity_info(plain, (3, 16, 16), show_table=False, show_arch=False)
    found = get_model_complexity_info(model, (3, 16, 16), show_table=False, show_arch=False)
    if block.get('mode') != 'online':  # online, a trace has the generation in it
        assert found['flops'] == expected['flops']
    assert found['activations'] >= expected['activations']
    squeezed = get_model_complexity_info(squeeze(model), (3, 16, 16), show_table=False)
    assert squeezed['flops'] == expected['flops']
    assert squeezed['params'] == expected['params']
