"""The algebra: composed kernels against the convolutions they stand for."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmorepa.convs import kernels

EXACT = dict(rtol=1e-12, atol=1e-12)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_scale():
    kernel, factors = rand(4, 3, 3, 3), rand(4)
    expected = torch.stack([kernel[o] * factors[o] for o in range(4)])
    torch.testing.assert_close(kernels.scale(kernel, factors), expected, **EXACT)


@pytest.mark.parametrize('size', [1, 3, 5])
def test_centre(size):
    pointwise = rand(4, 3, 1, 1)
    wide = kernels.centre(pointwise, size)
    x = rand(2, 3, 7, 7)
    torch.testing.assert_close(
        F.conv2d(x, wide, padding=size // 2), F.conv2d(x, pointwise), **EXACT
    )


@pytest.mark.parametrize('channels, size', [(1, 3), (2, 3), (5, 3), (8, 3), (64, 3), (7, 5)])
def test_frequency_prior(channels, size):
    filters = kernels.frequency_prior(channels, size)
    assert filters.shape == (channels, 1, size, size)
    for o in range(channels):
        for h in range(size):
            for w in range(size):
                if o < channels / 2:
                    expected = math.cos(math.pi * (h + 0.5) * (o + 1) / size)
                else:
                    expected = math.cos(math.pi * (w + 0.5) * (o + 1 - channels / 2) / size)
                assert filters[o, 0, h, w].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_compose_pointwise(groups, size):
    first, second = rand(6, 4 // groups, 1, 1), rand(8, 6 // groups, size, size)
    composed = kernels.compose_pointwise(first, second, groups)
    x = rand(2, 4, 7, 7)
    expected = F.conv2d(F.conv2d(x, first, groups=groups), second, groups=groups)
    torch.testing.assert_close(F.conv2d(x, composed, groups=groups), expected, **EXACT)


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('depth', [1, 2, 3, 4])
def test_compose_chain(groups, depth):
    """Equal to the chained convolutions once all but the first are flipped."""
    chain = [rand(4, (2 if i == 0 else 4) // groups, 3, 3) for i in range(depth)]
    composed = kernels.compose_chain(chain, groups)
    assert composed.shape == (4, 2 // groups, 2 * depth + 1, 2 * depth + 1)
    x = rand(2, 2, 11, 11)
    expected = F.conv2d(x, chain[0], groups=groups)
    for kernel in chain[1:]:
        expected = F.conv2d(expected, kernel.flip(2, 3), groups=groups)
    torch.testing.assert_close(F.conv2d(x, composed, groups=groups), expected, **EXACT)


def test_compose_chain_is_the_released_correlation():
    chain = [rand(5, 3, 3, 3), rand(5, 5, 3, 3), rand(5, 5, 3, 3)]
    current = chain[0].transpose(0, 1)
    for kernel in chain[1:]:
        current = F.conv2d(current, kernel, padding=2)
    torch.testing.assert_close(kernels.compose_chain(chain), current.transpose(0, 1), **EXACT)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('affine', [True, False])
def test_fold_batch_norm(bias, affine):
    kernel, x = rand(4, 3, 3, 3), rand(2, 3, 7, 7)
    bias = rand(4) if bias else None
    norm = torch.nn.BatchNorm2d(4, affine=affine, dtype=torch.float64).eval()
    norm.running_mean, norm.running_var = rand(4), rand(4).abs() + 0.1
    if affine:
        norm.weight.data, norm.bias.data = rand(4), rand(4)
    folded = kernels.fold_batch_norm(kernel, bias, norm)
    torch.testing.assert_close(F.conv2d(x, *folded), norm(F.conv2d(x, kernel, bias)), **EXACT)
    assert all(tensor.dtype == torch.float64 for tensor in folded)
