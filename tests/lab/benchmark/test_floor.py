"""The matrix products under a kernel: which, and that they are the ones."""

import pytest
import torch

from mmorepa import OREPAConv2d
from mmorepa.lab.benchmark.floor import Floor, products
from mmorepa.lab.benchmark.plan import Setup

EXACT = dict(rtol=1e-5, atol=1e-5)  # two ways to a product in float32


@pytest.mark.parametrize(
    'shape, expected',
    [
        ((512, 512, 3, 1), [(1, 9 * 512, 512, 512)]),
        ((4, 6, 5, 1), [(1, 25 * 6, 4, 4)]),
        ((8, 16, 3, 2), [(2, 9 * 8, 4, 4)]),
        ((8, 16, 3, 8), [(8, 9 * 2, 2, 1)]),
        ((64, 256, 1, 1), [(1, 256, 64, 64)]),
        ((256, 64, 1, 1), [(1, 64, 64, 256)]),
        (
            (3, 4, 7, 1),
            [
                (1, 36, 3, 3),
                (1, 36, 4, 4),
                (1, 4, 36, 3 * 25),
                (1, 36, 4, 4),
                (1, 4, 36, 3 * 49),
            ],
        ),
    ],
    ids=str,
)
def test_products(shape, expected):
    assert products(*shape) == expected


@pytest.mark.parametrize('shape', [(6, 4, 3), (4, 6, 1)], ids=str)
def test_inner_dimension_is_that_of_the_branch(shape):
    """As the block has it: the product is the one of its two-layer branch."""
    block = OREPAConv2d(*shape)
    ((groups, rows, inner, columns),) = products(*shape, 1)
    branch = block.kernel.get_submodule('pointwise_kxk' if shape[2] > 1 else 'pointwise_pointwise')
    (first, _), (second, _) = branch.factors()
    assert first.shape[:2] == (inner, columns)
    assert second.shape[1] == inner
    assert second.numel() == groups * rows * inner


def test_it_runs_what_it_says():
    floor = Floor(OREPAConv2d(4, 6, 3), Setup())
    floor.forward()
    floor.backward()
    ((left, right, grad),), ((to_left, to_right, product),) = floor.triples, floor.results
    left, right = left.requires_grad_(), right.requires_grad_()
    expected = left @ right
    expected.backward(grad)
    torch.testing.assert_close(product, expected.detach(), **EXACT)
    torch.testing.assert_close(to_left, left.grad, **EXACT)
    torch.testing.assert_close(to_right, right.grad, **EXACT)


def test_every_parameter_is_read_and_every_gradient_written():
    block = OREPAConv2d(4, 6, 3, bias=False)
    floor = Floor(block, Setup())
    floor.gradients.fill_(1.0)
    floor.forward()
    floor.backward()
    count = sum(p.numel() for p in block.parameters())
    assert floor.parameters.numel() == floor.gradients.numel() == count
    torch.testing.assert_close(floor.sum, floor.parameters.sum(), **EXACT)
    assert not floor.gradients.any()


def test_sample():
    assert set(Floor(OREPAConv2d(4, 6, 3), Setup(steps=2))()) == {'step', 'generate', 'pull_back'}
