"""What activation checkpointing does to BatchNorms: nothing."""

import copy

import pytest
import torch
from torch import nn

from mmorepa.backbones.activation_checkpoint import KeptStatistics, checkpointed
from mmorepa.convs import DBBConv2d


@pytest.fixture
def block():
    torch.manual_seed(0)
    return DBBConv2d(4, 4, 3, padding=1).double()


def image():
    return torch.rand(2, 4, 6, 6, dtype=torch.float64).requires_grad_()


def test_gradients_and_statistics_are_those_without(block):
    other, x = copy.deepcopy(block), image()
    block(x).square().sum().backward()
    checkpointed(other, other, x).square().sum().backward()
    for (name, a), b in zip(block.named_parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12, msg=name)
    for (name, a), b in zip(block.named_buffers(), other.buffers()):
        assert torch.equal(a, b), name
    assert block.original.norm.num_batches_tracked == 1


def test_a_block_can_be_differentiated_twice(block):
    loss = checkpointed(block, block, image()).square().sum()
    weight = block.original.weight
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert first.any()
    assert torch.equal(first, second)


@pytest.mark.parametrize('momentum', [0.1, None])
def test_kept_statistics(momentum):
    """A norm in eval mode, or without running statistics, is left alone."""
    norms = nn.Sequential(
        nn.BatchNorm1d(2, momentum=momentum),
        nn.BatchNorm1d(2, momentum=momentum).eval(),
        nn.BatchNorm1d(2, momentum=momentum, track_running_stats=False),
    )
    before = copy.deepcopy(norms.state_dict())
    with KeptStatistics(norms):
        norms(torch.rand(4, 2))
    assert [norm.momentum for norm in norms] == [momentum] * 3
    for key, value in norms.state_dict().items():
        assert torch.equal(value, before[key]), key
    norms(torch.rand(4, 2))
    assert not torch.equal(norms[0].running_mean, before['0.running_mean'])
