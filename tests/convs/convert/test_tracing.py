"""What modules do with the modules below them."""

import torch
import torch.nn.functional as F
from torch import nn

from mmorepa.convs import DBBConv2d
from mmorepa.convs.convert.tracing import calls_of
from support import end_trace


class Layers(nn.Module):
    """Two layers, and ways of running them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x, norm=True, *, scale=2):
        x = self.conv(x)
        return scale * self.bn(x) if norm else x


class InTraining(Layers):
    def forward(self, x):
        return self.bn(self.conv(x)) if self.training else self.conv(x)


class Weights(Layers):
    """One is read, one is computed with, without the input."""

    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.conv.weight), self.bn.running_var.view(4, 1, 1, 1))


class OnTheInput(Layers):
    def forward(self, x):
        end_trace(x)
        return super().forward(x)


class Keeps(Layers):
    def forward(self, x):
        self.seen = self.conv(x)
        return self.bn(self.seen)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), Layers()])

    def forward(self, *inputs):
        return self.layers[1](self.layers[0](inputs[0]))


def called(call):
    return [node.target for node in call.nodes if node.op == 'call_module']


def of(module):
    return calls_of([module])[id(module)]


def test_all_at_once():
    """Also a module inside another, by its own names."""
    outer, sequence = Several(), nn.Sequential(nn.ReLU())
    inner = outer.layers[1]
    found = calls_of([outer, inner, sequence])
    assert [called(call) for call in found[id(outer)]] == [['layers.0', 'layers.1']]
    assert [called(call) for call in found[id(inner)]] == [['conv', 'bn'], ['conv']]
    assert [call.is_usual for call in found[id(inner)]] == [True, False]
    assert found[id(sequence)] == []
    assert found[id(outer)][0].reaches_into('layers.')
    assert not found[id(inner)][0].reaches_into('layers.')


def test_modes():
    assert [called(call) for call in of(InTraining())] == [['conv'], ['conv', 'bn']]


def test_weights_that_are_read():
    (call,) = of(Weights())
    read = [node for node in call.nodes if node.op == 'get_attr']
    assert read[0].target == 'conv.weight'
    assert read[-1].meta['shape'] == (4, 1, 1, 1)


def test_what_cannot_be_traced_is_not_there():
    assert of(OnTheInput()) == []


def test_an_output_that_is_kept():
    module = Keeps()
    before = dict(vars(module))
    (call,) = of(module)
    assert [node.target for node in call.nodes if node.meta.get('is_kept')] == ['conv']
    assert vars(module) == before


class Counting(Layers):
    """Counts its steps in a buffer, and draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer('steps', torch.zeros(()))
        self.register_buffer('total', torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        self.total = self.total + 1
        return super().forward(x) * torch.rand(())


def test_buffers_and_random_numbers_are_as_before():
    module = Counting()
    buffers, state = dict(module.named_buffers()), torch.get_rng_state()
    assert of(module)
    after = dict(module.named_buffers())
    assert all(after[name] is buffer for name, buffer in buffers.items())
    assert module.steps == module.total == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_block_is_one_layer():
    module = Layers()
    module.conv = DBBConv2d(4, 4, 3, padding=1)
    assert called(of(module)[0]) == ['conv', 'bn']


def test_torch_is_left_as_it_was():
    before = nn.Module.__call__, nn.Module.__getattr__
    of(Layers())
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
    assert Layers()(torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2)
