"""What float16 cannot hold is named, layer by layer."""

import pytest
import torch
from torch import nn

from mmorepa.convs import OREPAConv2d, switch_to_deploy
from mmorepa.deploy.export import float16

IMAGE = torch.ones(1, 3, 8, 8)


def network(first=1.0, second=1.0):
    """Two layers whose weights are all the same."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    for conv, weight in zip((model[0], model[2]), (first, second)):
        nn.init.constant_(conv.weight, weight)
        nn.init.zeros_(conv.bias)
    return model


@pytest.mark.parametrize(
    'weights, found',
    [
        ((1.0, 1.0), []),
        ((21000.0, 0.1), []),
        # Three channels of 22000 are 66000.
        ((22000.0, 0.1), ['0: its outputs reach 6.6e+04', '1: its outputs reach 6.6e+04']),
        ((7e4, 0.0), ['0.weight: it reaches 7e+04', '0: its outputs reach 2.1e+05', '1: its']),
        ((1.0, 6e3), ['2: its outputs reach 7.2e+04']),
        ((float('nan'), 1.0), ['0.weight: it reaches nan', '0: its outputs reach nan', '1', '2']),
    ],
)
def test_out_of_range(weights, found):
    lines = float16.out_of_range(network(*weights), [IMAGE])
    assert [line[: len(start)] for line, start in zip(lines, found, strict=True)] == found
    assert all('float16 ends at 65504; train on' in line and '\n' not in line for line in lines)


def test_the_image_that_reaches_furthest_counts():
    model = network(1000.0, 1.0)
    assert float16.out_of_range(model, [IMAGE]) == []
    assert len(float16.out_of_range(model, [IMAGE, 100 * IMAGE, IMAGE])) == 3


@pytest.mark.parametrize(
    'weights, lines',
    [
        ((1.0, 7e-8), 0),
        # Half of the smallest number is rounded up to it.
        ((1.0, 3.1e-8), 0),
        ((1.0, 2.9e-8), 1),
        ((2.9e-8, 1e-9), 2),
        # Zero is zero in any format.
        ((1.0, 0.0), 0),
    ],
)
def test_vanishing(weights, lines):
    found = float16.vanishing_weights(network(*weights))
    assert len(found) == lines
    assert all('100.00% of it is below 6e-08' in line for line in found)


def test_a_few_small_weights_are_not_worth_a_line():
    conv = nn.Conv2d(100, 100, 3)
    with torch.no_grad():
        conv.weight.view(-1)[:5] = 1e-9
    assert float16.vanishing_weights(conv) == []
    with torch.no_grad():
        conv.weight[0] = 1e-9
    assert [line.partition(':')[0] for line in float16.vanishing_weights(conv)] == ['weight']


@pytest.mark.parametrize(
    'gain, variance, beyond, lost', [(1.0, 1.0, 0, 0), (1e3, 1e-7, 1, 0), (1e-9, 1.0, 0, 1)]
)
def test_folding_is_what_takes_a_kernel_there(gain, variance, beyond, lost):
    """The block itself is harmless: gamma / sqrt(var + eps) is what the kernel is multiplied by."""
    torch.manual_seed(0)
    model = nn.Sequential(OREPAConv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=1e-9))
    nn.init.constant_(model[1].weight, gain)
    model[1].running_var.fill_(variance)
    assert float16.out_of_range(model[0], []) == float16.vanishing_weights(model[0]) == []
    switch_to_deploy(model)
    assert len(float16.out_of_range(model, [])) == beyond
    assert len(float16.vanishing_weights(model)) == lost
