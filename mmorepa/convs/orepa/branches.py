"""The branches of an OREPA block (paper, sec. 3.3): one small module each, addressed by name.

A branch states one formula: called, it gives the scaled kernel that it amounts to. Beside it stand
the :meth:`~Branch.factors`, the convolutions that it would be over a feature map: the multi-branch
network of the paper's offline comparison. How kernels are added up at little cost, and gradients
taken back, is in :mod:`mmorepa.convs.orepa.fast`; a branch that is not there is as right, and
slower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import kernels
from ..constants import ConstantsMixin
from ..rows import as_kernel, as_rows

#: Initial scales of the k x k block, 3 <= k < 7, in the paper's order.
KXK = dict(original=0.25, average=0.25, prior=0.0, pointwise_kxk=0.5, pointwise=1.0, separable=0.5)
#: Initial scales of the 1x1 block.
POINTWISE = dict(original=1.0, pointwise_pointwise=0.5)

#: Filters a channel in the depthwise part of the separable branch.
SEPARABLE_MULTIPLIER = 8


class Branch(nn.Module):
    """One branch: its parameters, its scale, and its kernel.

    A subclass declares its parameters in :attr:`names`, gives them values in
    :meth:`new_parameters`, and has ``forward`` and :meth:`factors`. Parameters are read as
    attributes, so that parametrizations, pruning and torch's functional calls work.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k, odd.
        groups (int): g.
        slope (float): ``a`` of ``kaiming_uniform_`` for the parameters' initial values.
        scale (float, optional): Initial value of the scaling layer, one number an output channel.
            None leaves the scaling layer out.
    """

    #: The parameters besides the scale.
    names: tuple[str, ...] = ('weight',)

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
        self.initial_scale = scale
        if scale is None:
            self.register_parameter('scale', None)
        else:
            self.scale = nn.Parameter(torch.full((out_channels,), float(scale)))
        for name, value in self.new_parameters().items():
            self.register_parameter(name, nn.Parameter(value))

    @property
    def width(self) -> int:
        """Input channels of a group, I/g."""
        return self.in_channels // self.groups

    def new_parameters(self) -> dict[str, Tensor]:
        """Initial values of the parameters by name, the scale aside."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give all parameters initial values anew, as after ``to_empty``."""
        if self.scale is not None:
            self.scale.fill_(self.initial_scale)
        for name, value in self.new_parameters().items():
            getattr(self, name).copy_(value)

    def new_weight(self, *shape: int) -> Tensor:
        """A convolution's weight with initial values, ``kaiming_uniform_(a=slope)``."""
        return nn.init.kaiming_uniform_(torch.empty(*shape), a=self.slope)

    def scaled(self, kernel: Tensor) -> Tensor:
        """``kernel`` (O, ...) under this branch's scaling layer, if it has one."""
        return kernel if self.scale is None else kernels.scale(kernel, self.scale)

    def forward(self) -> Tensor:
        """The branch as one scaled kernel, (O, I/g, k, k)."""
        raise NotImplementedError

    def factors(self) -> list[tuple[Tensor, int]]:
        """The branch as convolutions in turn, without its scale: (weight, groups) each.

        A weight is 1x1 or k x k; at most one of them is k x k.
        """
        raise NotImplementedError


class Original(Branch):
    """The plain k x k convolution; its weight is stored in rows, (O, k^2, I/g)."""

    def new_parameters(self) -> dict[str, Tensor]:
        size = self.kernel_size
        return dict(weight=as_rows(self.new_weight(self.out_channels, self.width, size, size)))

    def forward(self) -> Tensor:
        return self.scaled(as_kernel(self.weight, self.kernel_size))

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(as_kernel(self.weight, self.kernel_size), self.groups)]


class Pointwise(Branch):
    """A 1x1 convolution; its weight is (O, I/g, 1, 1)."""

    def new_parameters(self) -> dict[str, Tensor]:
        return dict(weight=self.new_weight(self.out_channels, self.width, 1, 1))

    def forward(self) -> Tensor:
        return kernels.centre(self.scaled(self.weight), self.kernel_size)

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.weight, self.groups)]


class Average(Pointwise):
    """A 1x1 convolution, then an average over k x k."""

    def forward(self) -> Tensor:
        size = self.kernel_size
        return self.scaled(self.weight / size**2).expand(-1, -1, size, size)

    def factors(self) -> list[tuple[Tensor, int]]:
        size = self.kernel_size
        box = self.weight.new_full((self.out_channels, 1, size, size), 1 / size**2)
        return [(self.weight, self.groups), (box, self.out_channels)]


class Prior(ConstantsMixin, Pointwise):
    """A 1x1 convolution, then the constant ``filters`` of the frequency prior, (O, 1, k, k)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_constants(self.weight)

    def constants(self) -> dict[str, Tensor]:
        with torch.device('cpu'):
            return dict(filters=kernels.frequency_prior(self.out_channels, self.kernel_size))

    def forward(self) -> Tensor:
        return self.scaled(self.weight) * self.filters.clone()

    def factors(self) -> list[tuple[Tensor, int]]:
        # A copy for autograd to hold on to: DDP broadcasts buffers in place between two passes.
        return [(self.weight, self.groups), (self.filters.clone(), self.out_channels)]


class PointwiseKxK(Branch):
    """A 1x1 convolution that starts as the identity, then a k x k one.

    The 1x1 kernel is a fixed ``identity`` plus a learned ``residual`` that starts at zero, both
    (M, I/g, 1, 1). M is I, or 2 I in blocks of more than four groups. The ``weight`` of the k x k
    one is stored in rows, (O, k^2, M/g).
    """

    names = ('residual', 'weight')

    @property
    def middle_channels(self) -> int:
        """M."""
        return self.in_channels if self.groups <= 4 else 2 * self.in_channels

    @property
    def identity(self) -> Tensor:
        """E. No buffer: DDP would send its numbers round in every step."""
        identity = kernels.grouped_identity(self.middle_channels, self.in_channels, self.groups)
        return identity.to(self.residual)

    def new_parameters(self) -> dict[str, Tensor]:
        middle, size = self.middle_channels, self.kernel_size
        weight = self.new_weight(self.out_channels, middle // self.groups, size, size)
        return dict(residual=torch.zeros(middle, self.width, 1, 1), weight=as_rows(weight))

    def forward(self) -> Tensor:
        (first, _), (second, _) = self.factors()
        return self.scaled(kernels.compose_pointwise(first, second, self.groups))

    def factors(self) -> list[tuple[Tensor, int]]:
        second = as_kernel(self.weight, self.kernel_size)
        return [(self.identity + self.residual, self.groups), (second, self.groups)]


class Separable(Branch):
    """A depthwise separable convolution: k x k with eight filters a channel, then 1x1.

    ``depthwise`` (8, k^2, I) holds the filters in rows, ``pointwise`` (O, 8, I/g) what an output
    channel takes of each. The eight stand in front, not beside each other within a channel as in a
    convolution's weight, so that channels are next to each other in memory.
    """

    names = ('depthwise', 'pointwise')

    def new_parameters(self) -> dict[str, Tensor]:
        # Initial values as of the two convolutions, whose shapes they depend on.
        count, size = SEPARABLE_MULTIPLIER, self.kernel_size
        depthwise = self.new_weight(count * self.in_channels, 1, size, size)
        pointwise = self.new_weight(self.out_channels, count * self.width, 1, 1)
        return dict(depthwise=filters_first(depthwise), pointwise=shares_first(pointwise))

    def forward(self) -> Tensor:
        depthwise, pointwise = self._weights(self.scaled(self.pointwise))
        return kernels.compose_separable(depthwise, pointwise, SEPARABLE_MULTIPLIER, self.groups)

    def factors(self) -> list[tuple[Tensor, int]]:
        depthwise, pointwise = self._weights(self.pointwise)
        return [(depthwise, self.in_channels), (pointwise, self.groups)]

    def _weights(self, pointwise: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the two convolutions, (8 I, 1, k, k) and (O, 8 I/g, 1, 1)."""
        filters = as_kernel(self.depthwise, self.kernel_size)
        depthwise = filters.transpose(0, 1).flatten(0, 1).unsqueeze(1)
        return depthwise, pointwise.transpose(1, 2).flatten(1)[:, :, None, None]


class PointwisePointwise(Branch):
    """Two 1x1 convolutions, the square one starting as the identity (the 1x1 block's second)."""

    names = ('first', 'second')

    @property
    def first_is_square(self) -> bool:
        """Whether the first is the square one: where more channels go out than in."""
        return self.out_channels > self.in_channels

    def new_parameters(self) -> dict[str, Tensor]:
        channels = min(self.in_channels, self.out_channels)
        square = kernels.grouped_identity(channels, channels, self.groups)
        outer = self.new_weight(self.out_channels, self.width, 1, 1)
        first, second = (square, outer) if self.first_is_square else (outer, square)
        return dict(first=first, second=second)

    def forward(self) -> Tensor:
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


def filters_first(depthwise: Tensor) -> Tensor:
    """The weight of a depthwise convolution (8 I, 1, k, k) as the branch has it, (8, k^2, I)."""
    filters = depthwise.flatten(1).unflatten(0, (-1, SEPARABLE_MULTIPLIER))
    return filters.permute(1, 2, 0).contiguous()


def shares_first(pointwise: Tensor) -> Tensor:
    """The weight of a 1x1 convolution (O, 8 I/g, 1, 1) as the branch has it, (O, 8, I/g)."""
    shares = pointwise.flatten(1).unflatten(1, (-1, SEPARABLE_MULTIPLIER))
    return shares.transpose(1, 2).contiguous()
