"""ExpandConv2d against the three convolutions that it composes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmorepa.convs import ExpandConv2d

FLOAT64 = 1e-12  # relative

GEOMETRIES = [
    dict(in_channels=4, out_channels=6, kernel_size=3, padding=1),
    dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=2, dilation=2),
    dict(in_channels=6, out_channels=4, kernel_size=5, padding=2, groups=2),
    dict(in_channels=3, out_channels=8, kernel_size=7, stride=2, padding=3),
    dict(in_channels=6, out_channels=6, kernel_size=3, padding=1, groups=6),
]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
@pytest.mark.parametrize('rate', [1, 3])
def test_composes_three_convolutions(geometry, rate):
    torch.manual_seed(0)
    conv = ExpandConv2d(**geometry, rate=rate).double()
    with torch.no_grad():
        conv.bias.uniform_()
    x = torch.randn(2, geometry['in_channels'], 11, 9, dtype=torch.float64)
    out = F.conv2d(x, conv.kernel.first, groups=conv.groups)
    out = F.conv2d(
        out, conv.kernel.middle, None, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    out = F.conv2d(out, conv.kernel.last, conv.bias, groups=conv.groups)
    found = conv(x)
    assert (found - out).abs().max() < FLOAT64 * out.abs().max()
    plain = conv.switch_to_deploy()
    assert type(plain) is nn.Conv2d
    assert (plain(x) - out).abs().max() < FLOAT64 * out.abs().max()


def test_widths_are_the_paper_s():
    conv = ExpandConv2d(4, 8, 3)
    shapes = [tuple(p.shape) for p in conv.kernel.parameters()]
    assert shapes == [(16, 4, 1, 1), (32, 16, 3, 3), (8, 32, 1, 1)]


def test_gradients():
    torch.manual_seed(0)
    conv = ExpandConv2d(2, 3, 3, rate=2, bias=False).double()
    parameters = list(conv.kernel.parameters())

    def kernel(*values):
        names = [name for name, _ in conv.kernel.named_parameters()]
        return torch.func.functional_call(conv.kernel, dict(zip(names, values)), ())

    assert torch.autograd.gradcheck(kernel, [p.detach().requires_grad_() for p in parameters])


@pytest.mark.parametrize('kernel_size', [1, 4])
def test_sizes_that_are_refused(kernel_size):
    with pytest.raises(ValueError, match='use nn.Conv2d for this layer') as info:
        ExpandConv2d(4, 8, kernel_size)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('rate', [0, 2.5])
def test_wrong_rates(rate):
    with pytest.raises(ValueError, match=f'rate={rate}, wanted an integer of at least 1'):
        ExpandConv2d(4, 8, 3, rate=rate)
