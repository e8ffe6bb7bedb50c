"""The branches of an OREPA block (paper, sec. 3.3): one small module each, addressed by name.

A branch states three things: its parameters, the :meth:`~Branch.formula` of the kernel that it
amounts to, and the :meth:`~Branch.factors`, the convolutions that it is over a feature map, which
are the multi-branch network of the paper's offline comparison. Nothing else is needed for any mode.
:mod:`mmorepa.convs.orepa.fast` may know a quicker way to add the formula up and to take a gradient
back through it.

Notation of formulas: a convolution of g groups is g convolutions beside each other, ``s`` counts
them. Each has u output channels and w input channels, and t = k^2 taps. The kernel is (s, u, t, w).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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

    A subclass lists its parameters in :attr:`names`, gives them values in :meth:`new_parameters`,
    and has :meth:`formula` and :meth:`factors`. Constants are buffers, which go into the formula
    beside the parameters; :attr:`constant_names` lists them. Tensors are read as attributes, so
    that parametrizations, pruning and torch's functional calls work.

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
    #: The buffers that are constants of the formula.
    constant_names: tuple[str, ...] = ()
    #: Parameters and constants that all output channels of a convolution share: (s, ...) in the
    #: formula, where the others are (s, u, ...).
    shared: tuple[str, ...] = ()
    #: The dimension that groups follow each other in, where it is not the first.
    group_dims: dict[str, int] = {}

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

    @classmethod
    def fits(cls, kernel_size: int) -> bool:
        """Whether blocks of this kernel size may have the branch."""
        return kernel_size > 1

    @property
    def width(self) -> int:
        """Input channels of a group, I/g."""
        return self.in_channels // self.groups

    def new_parameters(self) -> dict[str, Tensor]:
        """Initial values of the parameters by name, the scale aside."""
        raise NotImplementedError

    @staticmethod
    def formula(taps: int, **tensors: Tensor) -> Tensor:
        """The kernel without the scale, (s, u, t, w).

        Args:
            taps (int): t.
            tensors (Tensor): Parameters and constants by name, as :meth:`view` gives them.
        """
        raise NotImplementedError

    def factors(self) -> list[tuple[Tensor, int]]:
        """The branch as convolutions in turn, without its scale: (weight, groups) each.

        A weight is 1x1 or k x k; at most one of them is k x k.
        """
        raise NotImplementedError

    def stacked_constants(self) -> dict[str, Tensor]:
        """Further tensors that the formula can be given, to save making them in each step."""
        return {}

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

    def tensors(self) -> dict[str, Tensor]:
        """Scale, parameters and constants by name, without those that are None."""
        tensors = {
            name: getattr(self, name) for name in ('scale', *self.names, *self.constant_names)
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def view(cls, name: str, tensor: Tensor, groups: int) -> Tensor:
        """A tensor as the formula takes it: (g, u, ...), or (g, ...) if it is shared.

        The sides of a kernel are one dimension, and none for a 1x1 kernel. Nothing is copied.

        Args:
            name (str): What it is called here.
            tensor (Tensor): As it is stored.
            groups (int): g.
        """
        dim = cls.group_dims.get(name, 0)
        if tensor.dim() == 4:
            tensor = tensor.flatten(2).squeeze(2)
        return tensor.unflatten(dim, (groups, -1)).movedim(dim, 0)

    def forward(self) -> Tensor:
        """The branch as one scaled kernel, (O, I/g, k, k)."""
        # Copies of constants for autograd to hold: DDP writes to buffers between two passes.
        tensors = {
            name: self.view(name, t.clone() if name in self.constant_names else t, self.groups)
            for name, t in self.tensors().items()
        }
        scale = tensors.pop('scale', None)
        rows = self.formula(self.kernel_size**2, **tensors)
        if scale is not None:
            rows = rows * scale[:, :, None, None]
        return as_kernel(rows.flatten(0, 1), self.kernel_size)


class Original(Branch):
    """The plain k x k convolution; its weight is stored in rows, (O, k^2, I/g)."""

    @classmethod
    def fits(cls, kernel_size: int) -> bool:
        return True

    def new_parameters(self) -> dict[str, Tensor]:
        size = self.kernel_size
        return dict(weight=as_rows(self.new_weight(self.out_channels, self.width, size, size)))

    @staticmethod
    def formula(taps: int, weight: Tensor) -> Tensor:
        return weight

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(as_kernel(self.weight, self.kernel_size), self.groups)]


class Pointwise(Branch):
    """A 1x1 convolution; its weight is (O, I/g, 1, 1)."""

    def new_parameters(self) -> dict[str, Tensor]:
        return dict(weight=self.new_weight(self.out_channels, self.width, 1, 1))

    @staticmethod
    def formula(taps: int, weight: Tensor) -> Tensor:
        return F.pad(weight.unsqueeze(2), [0, 0, taps // 2, taps // 2])

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.weight, self.groups)]


class Average(Pointwise):
    """A 1x1 convolution, then an average over k x k."""

    @staticmethod
    def formula(taps: int, weight: Tensor) -> Tensor:
        return (weight / taps).unsqueeze(2).expand(-1, -1, taps, -1)

    def factors(self) -> list[tuple[Tensor, int]]:
        size = self.kernel_size
        box = self.weight.new_full((self.out_channels, 1, size, size), 1 / size**2)
        return [(self.weight, self.groups), (box, self.out_channels)]


class Prior(ConstantsMixin, Pointwise):
    """A 1x1 convolution, then the constant ``filters`` of the frequency prior, (O, 1, k, k)."""

    constant_names = ('filters',)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_constants(self.weight)

    def constants(self) -> dict[str, Tensor]:
        with torch.device('cpu'):
            return dict(filters=kernels.frequency_prior(self.out_channels, self.kernel_size))

    @classmethod
    def view(cls, name: str, tensor: Tensor, groups: int) -> Tensor:
        # One filter an output channel: the dimension of input channels goes.
        return super().view(name, tensor.flatten(1) if name == 'filters' else tensor, groups)

    @staticmethod
    def formula(taps: int, weight: Tensor, filters: Tensor) -> Tensor:
        return torch.einsum('suw,sut->sutw', weight, filters)

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
    shared = ('residual', 'identity')

    @property
    def middle_channels(self) -> int:
        """M."""
        return self.in_channels if self.groups <= 4 else 2 * self.in_channels

    @property
    def identity(self) -> Tensor:
        """E. No buffer: DDP would send its numbers round in every step."""
        identity = kernels.grouped_identity(self.middle_channels, self.in_channels, self.groups)
        return identity.to(self.residual)

    def stacked_constants(self) -> dict[str, Tensor]:
        return dict(identity=self.identity)

    def new_parameters(self) -> dict[str, Tensor]:
        middle, size = self.middle_channels, self.kernel_size
        weight = self.new_weight(self.out_channels, middle // self.groups, size, size)
        return dict(residual=torch.zeros(middle, self.width, 1, 1), weight=as_rows(weight))

    @staticmethod
    def formula(
        taps: int, residual: Tensor, weight: Tensor, identity: Tensor | None = None
    ) -> Tensor:
        return torch.einsum('smw,sutm->sutw', plus_identity(residual, identity), weight)

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
    shared = ('depthwise',)
    group_dims = dict(depthwise=2)

    def new_parameters(self) -> dict[str, Tensor]:
        # Initial values as of the two convolutions, whose shapes they depend on.
        count, size = SEPARABLE_MULTIPLIER, self.kernel_size
        depthwise = self.new_weight(count * self.in_channels, 1, size, size)
        pointwise = self.new_weight(self.out_channels, count * self.width, 1, 1)
        return dict(depthwise=filters_first(depthwise), pointwise=shares_first(pointwise))

    @staticmethod
    def formula(taps: int, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        return torch.einsum('setw,suew->sutw', depthwise, pointwise)

    def factors(self) -> list[tuple[Tensor, int]]:
        filters = as_kernel(self.depthwise, self.kernel_size)
        depthwise = filters.transpose(0, 1).flatten(0, 1).unsqueeze(1)
        pointwise = self.pointwise.transpose(1, 2).flatten(1)[:, :, None, None]
        return [(depthwise, self.in_channels), (pointwise, self.groups)]


class PointwisePointwise(Branch):
    """Two 1x1 convolutions, the square one starting as the identity (the 1x1 block's second)."""

    names = ('first', 'second')
    shared = ('first',)

    @classmethod
    def fits(cls, kernel_size: int) -> bool:
        return kernel_size == 1

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

    @staticmethod
    def formula(taps: int, first: Tensor, second: Tensor) -> Tensor:
        return (second @ first).unsqueeze(2)

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


def plus_identity(residual: Tensor, identity: Tensor | None = None) -> Tensor:
    """``residual`` (s, m, w) plus identities on top of each other, which may be at hand."""
    if identity is not None:
        return residual + identity
    first = residual.clone()
    for offset in range(0, first.shape[1], first.shape[2]):
        first.diagonal(-offset, 1, 2).add_(1)
    return first
