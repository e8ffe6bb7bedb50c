"""ExpandNet's linear expansion of a convolution.

Guo, Alvarez, Salzmann, "ExpandNets: Linear Over-parameterization to Train Compact Convolutional
Networks", NeurIPS 2020, sec. 3.1: a k x k convolution trains as a 1x1, a k x k and a 1x1
convolution in a row, with more channels between them and no nonlinearity. In the paper the three
run over the feature map. Here their kernels are composed first, as in an OREPA block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import kernels
from ..arguments import check_integers
from ..generated import GeneratedConv2d


class LinearExpansion(nn.Module):
    """1x1 (I to r I), k x k (r I to r O), 1x1 (r O to O), composed into one kernel.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        kernel_size (int): The kernel size, k.
        groups (int): The number of groups of all three, g.
        rate (int): The expansion rate, r.
    """

    names = ('first', 'middle', 'last')

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, groups: int, rate: int
    ):
        super().__init__()
        self.groups = groups
        shapes = dict(
            first=(rate * in_channels, in_channels // groups, 1, 1),
            middle=(rate * out_channels, rate * in_channels // groups, kernel_size, kernel_size),
            last=(out_channels, rate * out_channels // groups, 1, 1),
        )
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give all parameters the initial values of ``nn.Conv2d``."""
        for name in self.names:
            nn.init.kaiming_uniform_(getattr(self, name), a=math.sqrt(5))

    def forward(self) -> Tensor:
        """The kernel, (O, I/g, k, k)."""
        inner = kernels.compose_pointwise(self.first, self.middle, self.groups)
        return kernels.compose_last_pointwise(inner, self.last, self.groups)

    def imitate(self, kernel: Tensor) -> None:
        """Set the parameters so that :meth:`forward` gives ``kernel``, (O, I/g, k, k).

        The 1x1 kernels become orthogonal, so that little is lost to rounding. The k x k kernel is
        then computed from ``kernel`` and these two.
        """
        out_channels, width, *_ = kernel.shape
        out_width = out_channels // self.groups
        first = self.first.reshape(self.groups, -1, width)
        last = self.last.reshape(self.groups, out_width, -1)
        for matrix in (*first, *last):
            nn.init.orthogonal_(matrix)
        target = kernel.reshape(self.groups, out_width, width, -1)
        middle = torch.einsum('gom,goik,gti->gmtk', last, target, first)
        self.middle.copy_(middle.reshape(self.middle.shape))


class ExpandConv2d(GeneratedConv2d):
    """A convolution that trains as ExpandNet's linear expansion of it.

    It takes the arguments of ``nn.Conv2d``. For those not listed see
    :class:`mmorepa.convs.reparam.ReparamConv2d`. Put one BatchNorm behind it.

    Args:
        kernel_size (int | tuple[int, int]): The kernel size, at least 3. ExpandNets leave 1x1
            convolutions alone.
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True.
        rate (int): The expansion rate r, at least 1. Defaults to 4, as in the paper.
        mode (str): See :class:`mmorepa.convs.generated.GeneratedConv2d`.

    Raises:
        UserError: As for :class:`mmorepa.convs.reparam.ReparamConv2d`, and if ``rate`` is no
            integer of at least 1.

    Example:
        >>> conv = ExpandConv2d(4, 8, 3, padding=1, bias=False)
        >>> [tuple(p.shape) for p in conv.parameters()]
        [(16, 4, 1, 1), (32, 16, 3, 3), (8, 32, 1, 1)]
        >>> conv.squeeze().shape
        torch.Size([8, 4, 3, 3])
    """

    sizes = range(3, 1 << 30, 2)
    options = ('rate', 'mode')

    def add_kernel(self, rate: int = 4) -> None:
        check_integers('ExpandConv2d', rate=rate)
        self.kernel = LinearExpansion(
            self.in_channels, self.out_channels, self.kernel_size[0], self.groups, rate
        )
