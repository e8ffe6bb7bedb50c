"""Whether a tensor is finite, of any type and shape. Of models: tests/engine/test_non_finite.py."""

import pytest
import torch

from mmorepa.convs.finite import is_finite

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize('dtype', [*FLOATS, torch.complex64], ids=str)
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('place', [0, 50, 104])
def test_one_value_is_enough(dtype, value, place):
    tensor = torch.ones(105, dtype=dtype)
    tensor[place] = value
    for shaped in (tensor, tensor.view(3, 5, 7), tensor.view(3, 5, 7).permute(2, 0, 1)):
        assert not is_finite(shaped)
    assert is_finite(tensor[torch.arange(105) != place])


@pytest.mark.parametrize('dtype', FLOATS, ids=str)
def test_the_largest_values_are_finite(dtype):
    """Their sum is not."""
    largest = torch.full((99,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest)
    assert is_finite(-largest)
    assert is_finite(torch.stack([largest, -largest]))


@pytest.mark.parametrize('dtype', [*FLOATS, torch.complex64, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize('shape', [(), (0,), (3, 0, 2), (4, 3)], ids=str)
def test_every_shape(dtype, shape):
    found = is_finite(torch.ones(shape, dtype=dtype))
    assert found.shape == ()
    assert found.dtype == torch.bool
    assert found
