"""Bytes, to the last one."""

import copy
import gc

import pytest
import torch
from torch import nn

from mmorepa.convs import OREPAConv2d, OREPARepVGGConv2d
from mmorepa.lab.benchmark.generation import generators, watched
from mmorepa.lab.benchmark.memory import Saved, measure, storage_bytes
from mmorepa.lab.benchmark.plan import Setup
from mmorepa.lab.benchmark.steps import TrainStep, images
from mmorepa.lab.benchmark.subjects import build, parse

BATCH, SIZE, FLOAT = 3, 32, 4
SETUP = Setup()


class Small(nn.Module):
    """(N, 3, 32, 32) to (N, 5) by way of a ReLU, whose output alone is saved."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 7)
        self.second = nn.Linear(7, 5)

    def forward(self, x):
        return self.second(self.first(x[:, :, 0, 0]).relu())


def step_of(network, setup=SETUP):
    torch.manual_seed(0)
    return TrainStep(network, images(BATCH, SIZE, setup), setup)


def narrow(subject, network='resnet18', **kwargs):
    torch.manual_seed(0)
    return build(parse(subject), network, width=0.125, **kwargs)


def test_of_a_network_that_can_be_counted_by_hand():
    found = measure(step_of(Small()))
    parameters = FLOAT * (3 * 7 + 7 + 7 * 5 + 5)
    loss = [
        FLOAT * BATCH * 5,  # log-probabilities
        8 * BATCH,  # labels
        FLOAT,  # their total weight
    ]
    assert found == dict(
        parameters=parameters,
        buffers=0,
        gradients=parameters,
        optimizer=parameters,
        activations=FLOAT * BATCH * 7 + sum(loss),
        kernels=0,
    )


def test_memory_that_is_shared_counts_once():
    whole = torch.zeros(10)
    assert storage_bytes([whole, whole[2:], torch.zeros(3)]) == FLOAT * 13


def test_frozen_parameters_have_no_gradient_and_no_state():
    network = Small()
    network.first.requires_grad_(False)
    found = measure(step_of(network))
    assert found['gradients'] == found['optimizer'] == FLOAT * (7 * 5 + 5)


def test_what_is_let_go_is_not_counted():
    x = torch.randn(BATCH, 7, requires_grad=True)
    with Saved(nn.Identity(), [x]) as saved:
        kept = x.exp()
        gone = x.exp()
        assert saved.activations == 2 * FLOAT * BATCH * 7
        del gone
        assert saved.activations == FLOAT * BATCH * 7
    del kept


@pytest.mark.parametrize(
    'network, width, plain, channels_last',
    [
        ('resnet18', 0.125, 'none', False),
        ('resnet18', 0.125, 'none', True),
        ('resnet50', 0.125, 'none', False),
        ('resnext50', 0.25, 'none', False),
        ('repvgg-a0', 0.125, 'RepVGG', False),
    ],
)
def test_generated_kernels_are_told_apart(network, width, plain, channels_last):
    """What is left is the plain network's to the byte: the convolutions are the same."""
    setup = Setup(channels_last=channels_last)
    ours, theirs = (
        measure(step_of(build(parse(name), network, width), setup)) for name in ('OREPA', plain)
    )
    assert ours['activations'] == theirs['activations']
    assert ours['kernels'] > 0
    assert theirs['kernels'] == 0


def test_kernels_are_at_least_what_is_convolved_with():
    network = narrow('OREPA')
    found = measure(step_of(network))
    convolved = sum(m.weight.numel() for m in network.modules() if isinstance(m, OREPAConv2d))
    assert found['kernels'] >= FLOAT * convolved


@pytest.mark.parametrize('subject', ['DBB', 'OREPA-offline'])
def test_blocks_that_make_no_kernel(subject):
    plain = measure(step_of(narrow('none')))
    found = measure(step_of(narrow(subject)))
    assert found['kernels'] == 0
    assert found['activations'] > plain['activations']


def test_measuring_leaves_nothing_behind():
    network = narrow('OREPA')
    step = step_of(network)
    measure(step)
    assert all(p.grad is None for p in network.parameters())
    assert not any('_kernel_in' in vars(m) for m in network.modules())
    assert step.loss is None
    copy.deepcopy(network)


def test_the_graph_is_freed():
    """Hooks on saved tensors can hold a graph for ever."""
    network = Small()
    step = step_of(network)
    with Saved(network, [step.x, *network.parameters()]) as saved:
        step.forward()
    assert saved.activations > 0
    step.loss = None
    gc.collect()
    assert saved.activations == 0


class TestGenerators:
    def test_every_block_that_generates(self):
        found = generators(narrow('OREPA'))
        assert len(found) == 17
        assert {generate.__name__ for generate in found} == {'squeeze'}
        assert found[0]().shape == (8, 3, 7, 7)

    def test_blocks_inside_of_blocks(self):
        block = OREPARepVGGConv2d(4, 4, 3, padding=1)
        assert [generate.__self__ for generate in generators(block)] == [block.original.conv]

    def test_frozen_blocks_keep_their_kernels(self):
        assert len(generators(narrow('OREPA', frozen_stages=1))) == 17 - 5

    @pytest.mark.parametrize('subject', ['none', 'DBB', 'OREPA-offline'])
    def test_there_may_be_none(self, subject):
        assert generators(narrow(subject)) == []

    def test_released_blocks_by_their_method(self):
        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

            def weight_gen(self):
                return self.weight.reshape(1, 1, 1, 1)

        class Stem(Layer):
            def __init__(self):
                super().__init__()
                self.inner = Layer()

        stem = Stem()
        assert generators(nn.Sequential(stem, Layer()))[0].__self__ is stem
        assert len(generators(nn.Sequential(stem, Layer()))) == 2

    def test_watching_sees_what_is_convolved_with(self):
        block = OREPAConv2d(2, 4, 3, padding=1)
        seen = []
        with watched(block, lambda: seen.append('begin'), lambda kernel: seen.append(kernel.shape)):
            block(torch.zeros(1, 2, 4, 4))
        block(torch.zeros(1, 2, 4, 4))
        assert seen == ['begin', (4, 2, 3, 3)]
