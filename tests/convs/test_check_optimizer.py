"""An optimizer that lacks parameters of blocks is told so."""

import pytest
import torch
from torch import nn

from mmorepa import OREPAConv2d, SqueezedTraining, check_optimizer
from mmorepa.convs import DBBConv2d
from mmorepa.errors import UserError

MODES = OREPAConv2d.modes


def network(mode='online'):
    return nn.Sequential(OREPAConv2d(4, 4, 3, mode=mode), nn.BatchNorm2d(4), DBBConv2d(4, 4, 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize('mode', MODES)
def test_all_parameters(mode):
    model = network(mode)
    check_optimizer(model, sgd(model.parameters()))


def test_squeezed_training():
    model = network()
    optimizer = sgd(model.parameters())
    SqueezedTraining(model, optimizer)
    check_optimizer(model, optimizer)


@pytest.mark.parametrize('mode', MODES)
def test_weights_alone(mode):
    """As scripts collect them that know convolutions and norms."""
    model = network(mode)
    weights = [p for name, p in model.named_parameters() if name.endswith(('weight', 'bias'))]
    with pytest.raises(UserError, match=r'does not hold .*0\.kernel\.\w+\.scale, .* never') as info:
        check_optimizer(model, sgd(weights))
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('mode', MODES)
def test_what_is_frozen_need_not_be_held(mode):
    model = network(mode)
    model[0].requires_grad_(False)
    check_optimizer(model, sgd([p for layer in model[1:] for p in layer.parameters()]))


def test_a_block_as_the_model():
    block = OREPAConv2d(4, 4, 3, mode='squeezed')
    with pytest.raises(UserError, match=r'does not hold kernel\.original\.\w+, .* and \d+ more'):
        check_optimizer(block, sgd([block.bias]))
