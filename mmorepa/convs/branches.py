"""The branches of an OREPA block (paper, sec. 3.3): one small module each, addressed by name.

A branch knows two things about itself: the one ``kernel()`` it amounts to, and the ``factors()``,
the convolutions it would be over a feature map. The first is what training uses; the second is the
multi-branch network of the paper's offline comparison, and the reference of the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import kernels

#: Initial scales of the k x k block, 3 <= k < 7, in the paper's order.
KXK = dict(original=0.25, average=0.25, prior=0.0, pointwise_kxk=0.5, pointwise=1.0, separable=0.5)
#: Initial scales of the 1x1 block.
POINTWISE = dict(original=1.0, pointwise_pointwise=0.5)

#: Filters a channel in the depthwise part of the separable branch.
SEPARABLE_MULTIPLIER = 8


class Branch(nn.Module):
    """One branch: its parameters, its kernel, and its scale.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k, odd.
        groups (int): g.
        slope (float): ``a`` of ``kaiming_uniform_`` for the parameters' initial values.
        scale (float, optional): Initial value of the scaling layer, one number an output channel.
            None leaves the scaling layer out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        slope: float,
        scale: float | None,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.groups = groups
        self.slope = slope
        if scale is None:
            self.register_parameter('scale', None)
        else:
            self.scale = nn.Parameter(torch.full((out_channels,), float(scale)))

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """A parameter with this block's initial values, ``kaiming_uniform_(a=slope)``."""
        return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(*shape), a=self.slope))

    def scaled(self, kernel: Tensor) -> Tensor:
        """``kernel`` (O, ...) under this branch's scaling layer, if it has one."""
        return kernel if self.scale is None else kernels.scale(kernel, self.scale)

    def kernel(self) -> Tensor:
        """The branch as one scaled kernel, (O, I/g, k, k)."""
        raise NotImplementedError

    def factors(self) -> list[tuple[Tensor, int]]:
        """The branch as convolutions in turn, without its scale: (weight, groups) each.

        A weight is 1x1 or k x k; at most one of them is k x k.
        """
        raise NotImplementedError


class Original(Branch):
    """The plain k x k convolution."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        size = self.kernel_size
        self.weight = self.new_parameter(
            self.out_channels, self.in_channels // self.groups, size, size
        )

    def kernel(self) -> Tensor:
        return self.scaled(self.weight)

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.weight, self.groups)]


class PointwiseBranch(Branch):
    """What branches that start from one 1x1 kernel (O, I/g, 1, 1) share."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight = self.new_parameter(self.out_channels, self.in_channels // self.groups, 1, 1)


class Pointwise(PointwiseBranch):
    """A 1x1 convolution."""

    def kernel(self) -> Tensor:
        return kernels.centre(self.scaled(self.weight), self.kernel_size)

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.weight, self.groups)]


class Average(PointwiseBranch):
    """A 1x1 convolution, then an average over k x k."""

    def kernel(self) -> Tensor:
        size = self.kernel_size
        return self.scaled(self.weight / size**2).expand(-1, -1, size, size)

    def factors(self) -> list[tuple[Tensor, int]]:
        size = self.kernel_size
        box = self.weight.new_full((self.out_channels, 1, size, size), 1 / size**2)
        return [(self.weight, self.groups), (box, self.out_channels)]


class Prior(PointwiseBranch):
    """A 1x1 convolution, then the constant filters of the frequency prior."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        filters = kernels.frequency_prior(self.out_channels, self.kernel_size)
        self.register_buffer('filters', filters.to(self.weight.dtype), persistent=False)

    def kernel(self) -> Tensor:
        return self.scaled(self.weight) * self.filters

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.weight, self.groups), (self.filters, self.out_channels)]


class PointwiseKxK(Branch):
    """A 1x1 convolution that starts as the identity, then a k x k one.

    The 1x1 kernel is a fixed identity E plus a learned ``residual`` that starts at zero. It has
    M = I channels inside, 2 I in blocks of more than four groups.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        middle = self.in_channels if self.groups <= 4 else 2 * self.in_channels
        size = self.kernel_size
        identity = kernels.grouped_identity(middle, self.in_channels, self.groups)
        self.register_buffer('identity', identity, persistent=False)
        self.residual = nn.Parameter(torch.zeros_like(identity))
        self.weight = self.new_parameter(self.out_channels, middle // self.groups, size, size)

    def kernel(self) -> Tensor:
        first = self.identity + self.residual
        return self.scaled(kernels.compose_pointwise(first, self.weight, self.groups))

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.identity + self.residual, self.groups), (self.weight, self.groups)]


class Separable(Branch):
    """A depthwise separable convolution: k x k with eight filters a channel, then 1x1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        expanded = SEPARABLE_MULTIPLIER * self.in_channels
        self.depthwise = self.new_parameter(expanded, 1, self.kernel_size, self.kernel_size)
        self.pointwise = self.new_parameter(self.out_channels, expanded // self.groups, 1, 1)

    def kernel(self) -> Tensor:
        return kernels.compose_separable(
            self.depthwise, self.scaled(self.pointwise), SEPARABLE_MULTIPLIER, self.groups
        )

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.depthwise, self.in_channels), (self.pointwise, self.groups)]


class PointwisePointwise(Branch):
    """Two 1x1 convolutions, the square one starting as the identity (the 1x1 block's second)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        in_width = self.in_channels // self.groups
        out_width = self.out_channels // self.groups
        outer = (self.out_channels, in_width, 1, 1)
        if out_width > in_width:
            square = kernels.grouped_identity(self.in_channels, self.in_channels, self.groups)
            self.first = nn.Parameter(square)
            self.second = self.new_parameter(*outer)
        else:
            square = kernels.grouped_identity(self.out_channels, self.out_channels, self.groups)
            self.first = self.new_parameter(*outer)
            self.second = nn.Parameter(square)

    def kernel(self) -> Tensor:
        return kernels.compose_pointwise(self.first, self.scaled(self.second), self.groups)

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.first, self.groups), (self.second, self.groups)]


#: Every branch there is, by the name that configs and state dicts use.
BRANCHES: dict[str, type[Branch]] = dict(
    original=Original,
    average=Average,
    prior=Prior,
    pointwise_kxk=PointwiseKxK,
    pointwise=Pointwise,
    separable=Separable,
    pointwise_pointwise=PointwisePointwise,
)
