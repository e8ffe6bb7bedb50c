"""Adaptive pooling in operators that ONNX has is torch's."""

import pytest
import torch
from torch import nn

from mmorepa.deploy.export.adaptive_pool import SizelessAdaptiveAvgPool2d, sizeless_pools

TOLERANCE = dict(rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [(12, 12), (8, 12), (7, 13), (6, 5), (1, 40)])
def test_any_size(bins, size):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = SizelessAdaptiveAvgPool2d(bins)(image)
    torch.testing.assert_close(found, nn.AdaptiveAvgPool2d(bins)(image), **TOLERANCE)


@pytest.mark.parametrize(
    'sample, replaced',
    [(None, [False, True, True, False]), (torch.zeros(1, 3, 8, 4), [False, False, True, False])],
    ids=['any size', '8 x 4'],
)
def test_only_where_it_is_needed(sample, replaced):
    class Pyramid(nn.ModuleList):
        def forward(self, x):
            return [pool(x) for pool in self]

    pools = [nn.AdaptiveAvgPool2d(bins) for bins in (1, 2, 3, (2, 4))]
    model = Pyramid(pools)
    with sizeless_pools(model, sample):
        assert [type(pool) is SizelessAdaptiveAvgPool2d for pool in model] == replaced
    assert list(model) == pools
