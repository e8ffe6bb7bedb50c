"""Blocks done together: the same numbers as block by block, in few operations."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import mmorepa.pretrain  # noqa: F401
from mmorepa import OREPAConv2d, SqueezedTraining
from mmorepa.convs.generated import GeneratedConv2d
from mmorepa.convs.orepa.branches import KXK, POINTWISE
from mmorepa.convs.orepa.squeezed_training import pull_block_back, pull_sum_back, write_sum
from mmorepa.convs.orepa.stacks import Stack, stack_key
from mmorepa.lab.benchmark.operations import count_operations
from support import make_trained_like

FLOAT64 = 1e-12  # relative, kernels and gradients

#: Output channels of each block that is stacked, groups, input channels of a group.
GEOMETRIES = [
    ((4,), 1, 3),
    ((4, 4), 1, 4),
    ((4, 8, 6), 1, 3),
    ((3, 5), 1, 2),
    ((8,), 2, 3),
    ((8, 8), 2, 4),
    ((8, 4, 12), 2, 3),
    ((6, 12), 3, 1),
    ((4, 4), 4, 1),
]
BRANCHES = [
    *((3, names) for names in (None, ['original'], ['separable'], ['pointwise_kxk'])),
    *((3, names) for names in (['separable', 'prior'], ['average', 'pointwise', 'pointwise_kxk'])),
    *((1, names) for names in (None, ['original'], ['pointwise_pointwise'])),
    (5, ['original', 'separable', 'pointwise_kxk']),
]


def block_of(channels, groups, width, size=3, branches=None):
    # A 1x1 block of fewer output than input channels is another geometry between its two factors.
    channels *= 3 if size == 1 else 1
    conv = OREPAConv2d(
        groups * width, channels, size, groups=groups, branches=branches, mode='squeezed'
    )
    return make_trained_like(conv, channels).double()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def assert_equal(convs):
    """Kernels and gradients of a stack against those of each block by itself."""
    torch.manual_seed(1)
    keys = {stack_key(conv.kernel) for conv in convs}
    assert len(keys) == 1
    gradients = [torch.randn_like(conv.weight) for conv in convs]
    expected = []
    for conv, gradient in zip(convs, gradients):
        pull_sum_back(conv.kernel, gradient, list(conv.kernel.parameters()))
        expected.append({name: p.grad for name, p in conv.kernel.named_parameters()})
        conv.zero_grad()
    kernels = [conv.squeeze().detach().clone() for conv in convs]
    values = [{n: p.detach().clone() for n, p in c.kernel.named_parameters()} for c in convs]

    stack = Stack([conv.kernel for conv in convs], [conv._parameters['weight'] for conv in convs])
    assert stack.is_whole
    for conv, before in zip(convs, values):
        for name, parameter in conv.kernel.named_parameters():
            assert torch.equal(parameter, before[name]), name
    for leaf in stack.leaves:
        leaf.detach().fill_(float('nan'))
    stack.generate()
    for leaf, kernel, wanted in zip(stack.leaves, stack.kernels, kernels):
        assert leaf.data_ptr() == kernel.data_ptr()
        assert relative(leaf, wanted) < FLOAT64
    for _ in range(2):  # found anew, not added up
        stack.pull_back(gradients)
        for conv, wanted in zip(convs, expected):
            for name, parameter in conv.kernel.named_parameters():
                assert parameter.grad.shape == wanted[name].shape, name
                assert relative(parameter.grad, wanted[name]) < FLOAT64, name


@pytest.mark.parametrize('last', [False, True], ids=['', 'channels_last'])
@pytest.mark.parametrize('size, branches', [(3, None), (1, None)], ids=['3x3', '1x1'])
@pytest.mark.parametrize('channels, groups, width', GEOMETRIES)
def test_geometries(channels, groups, width, size, branches, last):
    convs = [block_of(o, groups, width, size, branches) for o in channels]
    if last:
        convs = [conv.to(memory_format=torch.channels_last) for conv in convs]
    assert_equal(convs)


@pytest.mark.parametrize('scales', [True, False], ids=['scaled', 'unscaled'])
@pytest.mark.parametrize(
    'size, branches', BRANCHES, ids=lambda value: '+'.join(value) if type(value) is list else value
)
def test_branches(size, branches, scales):
    if not scales:
        branches = dict.fromkeys(branches or (POINTWISE if size == 1 else KXK))
    assert_equal([block_of(channels, 2, 3, size, branches) for channels in (8, 4, 12)])


@pytest.mark.parametrize('channels', [(4, 4), (4, 8)])
def test_layers_of_stems(channels):
    """Their kernels are composed, so that they have no leaves of their own."""
    convs = [block_of(o, 1, 4, 7) for o in channels]
    gradients = [torch.randn_like(conv.weight) for conv in convs]
    expected = []
    for conv, gradient in zip(convs, gradients):
        pull_block_back(conv, gradient, list(conv.kernel.parameters()))
        expected.append([p.grad for p in conv.kernel.parameters()])
    kernels = [conv.squeeze().detach().clone() for conv in convs]
    net = nn.Sequential(*convs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    training = SqueezedTraining(net, optimizer, grouped=True)
    for _ in range(2):
        net.zero_grad()
        for conv, gradient in zip(convs, gradients):
            conv.weight.grad = gradient.clone()
        training.pull_back()
        for conv, wanted in zip(convs, expected):
            for parameter, own in zip(conv.kernel.parameters(), wanted):
                assert relative(parameter.grad, own) < FLOAT64
        training.generate()
        for conv, wanted in zip(convs, kernels):
            assert relative(conv.weight.detach(), wanted) < FLOAT64
    # Layers of 4 input channels beside each other, those of 8 apart.
    assert sum(len(stack.blocks) for stack in training._stacks) == 6


def test_what_is_stacked():
    """As few stacks as geometries; blocks of other branches or without scales apart."""
    alike = [block_of(o, 1, 4) for o in (4, 8, 12)]
    others = [block_of(8, 2, 4), block_of(8, 1, 4, 1), block_of(8, 1, 3), block_of(8, 1, 4, 5)]
    others += [block_of(8, 1, 4, 3, ['original']), block_of(8, 1, 4, 3, dict(original=None))]
    others += [block_of(8, 1, 4).float()]
    keys = [stack_key(conv.kernel) for conv in (*alike, *others)]
    assert len(set(keys)) == 1 + len(others)
    assert len(set(keys[: len(alike)])) == 1


def test_a_move_is_seen():
    convs = [block_of(o, 1, 4) for o in (4, 8)]
    leaves = [conv._parameters['weight'] for conv in convs]
    stack = Stack([conv.kernel for conv in convs], leaves)
    assert stack.is_whole
    with torch.no_grad():
        for parameter in convs[0].kernel.parameters():
            parameter.add_(1)
    assert stack.is_whole
    leaves[1].data = leaves[1].data.clone()
    assert not stack.is_whole


def test_block_by_block_into_any_memory_format():
    """The other path, which :func:`assert_equal` compares with."""
    for groups in (1, 2):
        conv = block_of(8, groups, 3)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            leaf = torch.empty_like(conv.weight, memory_format=memory_format)
            write_sum(conv.kernel, leaf)
            assert relative(leaf, conv.squeeze()) < FLOAT64


#: Operations for pulling back and generating, room counted as well.
MOST = {18: 250, 50: 400}


@pytest.mark.parametrize('depth', MOST)
def test_operations_of_a_step(depth):
    """They grow with the number of geometries, not with that of blocks, nor with the width."""
    cfg = dict(type='mmpretrain.OREPAResNet', depth=depth, base_channels=8, stem_channels=8)
    net = MODELS.build(dict(cfg, reparam=dict(type='OREPA', mode='squeezed')))
    blocks = [module for module in net.modules() if isinstance(module, GeneratedConv2d)]
    training = SqueezedTraining(net, torch.optim.SGD(net.parameters(), lr=0.1), grouped=True)

    def step():
        for block in blocks:
            block.weight.grad = torch.zeros_like(block.weight)
        counts = [count_operations(training.pull_back, allocations=True).total]
        training.optimizer.step()
        counts.append(count_operations(training.generate, allocations=True).total)
        training.zero_grad()
        return counts

    step()  # stacks the blocks
    found = step()
    assert sum(found) <= MOST[depth]
    assert min(found) > 50
