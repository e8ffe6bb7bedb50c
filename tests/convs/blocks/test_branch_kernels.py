"""The kernels of branches: what they add up to, what their scales are, how alike they are."""

import copy
import math

import pytest
import torch
from torch import nn

from mmorepa.convs import (
    ACNetConv2d,
    DBBConv2d,
    MobileOneConv2d,
    OREPAConv2d,
    OREPARepVGGConv2d,
    RepVGGConv2d,
)
from mmorepa.convs.blocks.branch_kernels import (
    BranchGram,
    branch_kernel,
    branch_sums,
    measure,
    named_blocks,
)
from support import make_trained_like

SAME = 1e-9  # relative, two ways to the same number in float64
ROUNDED = 1e-5  # relative, the same in float32
HALF = 1e-2  # relative, of parameters in float16


def trained(block) -> nn.Module:
    torch.manual_seed(0)
    return make_trained_like(block).double().eval()


BLOCKS = [
    pytest.param(lambda: OREPAConv2d(4, 6, 1, bias=False), id='OREPA 1x1'),
    pytest.param(lambda: OREPAConv2d(4, 6, 3, bias=False), id='OREPA 3x3'),
    pytest.param(lambda: OREPAConv2d(8, 16, 3, groups=8, bias=False), id='OREPA grouped'),
    pytest.param(
        lambda: OREPAConv2d(4, 6, 3, bias=False, branches=dict(original=None, separable=0.5)),
        id='OREPA, a scale left out',
    ),
    pytest.param(lambda: DBBConv2d(6, 6, 3, padding=1), id='DBB'),
    pytest.param(lambda: DBBConv2d(6, 6, 3, padding=1, groups=6), id='DBB depthwise'),
    pytest.param(lambda: DBBConv2d(6, 6, 3, padding=1, norm=None), id='DBB without norms'),
    pytest.param(lambda: RepVGGConv2d(6, 6, 3, padding=1), id='RepVGG'),
    pytest.param(lambda: OREPARepVGGConv2d(6, 6, 3, padding=1), id='OREPA-RepVGG'),
    pytest.param(lambda: ACNetConv2d(4, 6, 3, padding=1), id='ACNet'),
    pytest.param(lambda: MobileOneConv2d(6, 6, 3, padding=1), id='MobileOne'),
]


@pytest.mark.parametrize('make', BLOCKS)
class TestBranchKernels:
    def test_add_up_to_the_kernel(self, make):
        block = trained(make())
        found = branch_sums(block)[0]
        total = sum(branch_kernel(branch) for branch in found.branches.values())
        torch.testing.assert_close(total, block.merged()[0], rtol=SAME, atol=SAME)

    def test_a_scale_is_one_number_a_channel(self, make):
        """With and without, each output channel's kernel points the same way, or the opposite."""
        for branch in branch_sums(trained(make()))[0].branches.values():
            kernel, bare = (
                branch_kernel(branch, with_scale).flatten(1) for with_scale in (True, False)
            )
            scale = (kernel * bare).sum(1) / bare.square().sum(1)
            torch.testing.assert_close(kernel, scale[:, None] * bare, rtol=SAME, atol=SAME)

    def test_leave_the_block_as_it_was(self, make):
        block = trained(make())
        before = copy.deepcopy(block.state_dict())
        measure(branch_sums(block)[0].branches, with_scale=False)
        after = block.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_without_its_scale_a_branch_has_a_scale_of_one():
    block = trained(OREPAConv2d(4, 6, 3, bias=False))
    bare = {n: branch_kernel(b, with_scale=False) for n, b in block.kernel.named_children()}
    for branch in block.kernel.children():
        nn.init.ones_(branch.scale)
    for name, branch in block.kernel.named_children():
        torch.testing.assert_close(bare[name], branch_kernel(branch), rtol=SAME, atol=SAME)


def test_without_the_norm_behind_it_a_convolution_is_its_weight():
    block = trained(RepVGGConv2d(6, 6, 3, padding=1))
    kernel = branch_kernel(block.original, with_scale=False)
    torch.testing.assert_close(kernel, block.original.weight, rtol=SAME, atol=0)


def test_half_precision_is_measured_in_float32():
    block = make_trained_like(OREPAConv2d(4, 6, 3, bias=False))
    full = measure(block.kernel._modules)
    half = measure(block.half().kernel._modules)
    assert half.norms == pytest.approx(full.norms, rel=HALF)


class TestNames:
    def test_of_a_network(self):
        model = nn.Sequential()
        model.add_module('stem', OREPAConv2d(3, 4, 7))
        model.add_module('plain', nn.Conv2d(4, 4, 3))
        model.add_module('block', nn.Sequential(OREPARepVGGConv2d(4, 4, 3, padding=1)))
        model.add_module('last', OREPAConv2d(4, 4, 1))
        assert [(found.name, found.kind) for found in branch_sums(model)] == [
            ('stem.0', 'stem'),
            ('stem.1', 'stem'),
            ('stem.2', 'stem'),
            ('block.0', '3x3'),
            ('block.0.original.conv', '3x3'),
            ('last', '1x1'),
        ]
        assert [name for name, _ in named_blocks(model)] == ['stem', 'block.0', 'last']

    def test_of_a_block_alone(self):
        assert [found.name for found in branch_sums(OREPAConv2d(3, 4, 7))] == ['0', '1', '2']
        ((name, _),) = named_blocks(OREPAConv2d(3, 4, 7))
        assert name == ''


class TestGram:
    # a, twice a, something orthogonal to both, minus that, nothing.
    vectors = torch.tensor([[1.0, 0], [2, 0], [0, 3], [0, -3], [0, 0]], dtype=torch.float64)
    gram = BranchGram(tuple('abcde'), (vectors @ vectors.T).tolist())

    def test_norms(self):
        assert self.gram.norms == [1, 2, 3, 3, 0]
        assert self.gram.kernel_norm == 3

    def test_cosines(self):
        assert self.gram.pairs == {
            ('a', 'b'): 1,
            ('a', 'c'): 0,
            ('a', 'd'): 0,
            ('b', 'c'): 0,
            ('b', 'd'): 0,
            ('c', 'd'): -1,
        }
        assert math.isnan(self.gram.cosines[0][4])
        assert self.gram.cosines[1][0] == 1

    def test_similarity(self):
        assert self.gram.similarity == 0
        assert self.gram.magnitude == pytest.approx(2 / 6, rel=SAME)

    def test_shares_add_up_to_one(self):
        """The sum is (3, 0): a has a third of it, b two thirds, the others nothing."""
        assert self.gram.shares == pytest.approx([1 / 3, 2 / 3, 0, 0, 0], abs=SAME)

    def test_a_single_branch_has_no_pair(self):
        alone = BranchGram(('a',), [[4.0]])
        assert math.isnan(alone.similarity)
        assert alone.shares == [1]

    def test_nothing_has_no_share(self):
        assert all(map(math.isnan, BranchGram(('a', 'b'), [[0.0, 0.0], [0.0, 0.0]]).shares))

    def test_as_torch_has_it(self):
        block = make_trained_like(OREPAConv2d(4, 6, 3, bias=False))
        gram = measure(block.kernel._modules)
        kernels = [branch_kernel(branch).flatten() for branch in block.kernel.children()]
        for i, first in enumerate(kernels):
            for j, second in enumerate(kernels):
                expected = torch.cosine_similarity(first, second, dim=0).item()
                assert gram.cosines[i][j] == pytest.approx(expected, abs=ROUNDED)
        assert gram.kernel_norm == pytest.approx(block.squeeze().norm().item(), rel=ROUNDED)


def test_at_the_start_of_training_the_prior_has_no_cosine():
    gram = measure(OREPAConv2d(4, 6, 3).kernel._modules)
    assert not any('prior' in pair for pair in gram.pairs)
    assert len(gram.pairs) == math.comb(5, 2)
