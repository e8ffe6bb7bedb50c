"""The branches of an OREPA block (paper, sec. 3.3): one small module each, addressed by name.

A branch defines three things: its parameters; the :meth:`~Branch.formula` of its equivalent kernel;
and its :meth:`~Branch.factors`, the convolutions over a feature map that it is equal to, which the
paper's offline comparison runs. No mode needs more. :mod:`mmorepa.convs.orepa.fast` may have a
quicker way to add up the formula and to compute the gradient of its parameters.

Notation of formulas: a convolution of g groups is g convolutions beside each other, counted by
``s``. Each has u output channels, w input channels and t = k^2 taps. The kernel is (s, u, t, w).
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

#: The number of filters for each channel in the depthwise part of the separable branch.
SEPARABLE_MULTIPLIER = 8


class Branch(nn.Module):
    """One branch: its parameters, its scale, and its kernel.

    A subclass lists its parameters in :attr:`names`, gives them values in :meth:`new_parameters`,
    and defines :meth:`formula` and :meth:`factors`. A subclass with constants in its formula is a
    :class:`mmorepa.convs.constants.ConstantsMixin` too. Tensors are read as attributes, so that
    parametrizations, pruning and torch's functional calls work.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        kernel_size (int): The kernel size, k, odd.
        groups (int): The number of groups, g.
        slope (float): ``a`` of the ``kaiming_uniform_`` that gives the parameters' initial values.
        scale (float, optional): The initial value of the scaling layer, which has one number for
            each output channel. None leaves the scaling layer out.
    """

    #: The names of the parameters, except the scale.
    names: tuple[str, ...] = ('weight',)
    #: The names of the constants of the formula, see ``ConstantsMixin``.
    constant_names: tuple[str, ...] = ()
    #: The parameters and constants that all output channels of a convolution share. In the formula
    #: they are (s, ...), and the others are (s, u, ...).
    shared: tuple[str, ...] = ()
    #: For parameters whose groups do not follow each other in the first dimension: that dimension.
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
        """Whether blocks of this kernel size can have the branch."""
        return kernel_size > 1

    @property
    def width(self) -> int:
        """The number of input channels of a group, I/g."""
        return self.in_channels // self.groups

    def new_parameters(self) -> dict[str, Tensor]:
        """The initial values of the parameters by name, except the scale."""
        raise NotImplementedError

    @staticmethod
    def formula(taps: int, **tensors: Tensor) -> Tensor:
        """The kernel without the scale, (s, u, t, w).

        Args:
            taps (int): The number of taps, t.
            tensors (Tensor): The parameters and constants by name, as :meth:`view` returns them.
        """
        raise NotImplementedError

    def factors(self) -> list[tuple[Tensor, int]]:
        """The branch without its scale as convolutions in a row: a list of (weight, groups).

        Each weight is 1x1 or k x k, and at most one of them is k x k.
        """
        raise NotImplementedError

    def stacked_constants(self) -> dict[str, Tensor]:
        """Further tensors that the formula accepts, so that it need not make them in each step."""
        return {}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give all parameters new initial values, for example after ``to_empty``."""
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
        """A view of a tensor as the formula needs it: (g, u, ...), or (g, ...) if it is shared.

        Height and width of a kernel become one dimension, and none for a 1x1 kernel. Nothing is
        copied.

        Args:
            name (str): The tensor's name in the branch.
            tensor (Tensor): The tensor as it is stored.
            groups (int): The number of groups, g.
        """
        dim = cls.group_dims.get(name, 0)
        if tensor.dim() == 4:
            tensor = tensor.flatten(2).squeeze(2)
        return tensor.unflatten(dim, (groups, -1)).movedim(dim, 0)

    def forward(self) -> Tensor:
        """The branch as one scaled kernel, (O, I/g, k, k)."""
        # Autograd gets copies of the constants, because DDP writes to buffers between two passes.
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
    """The plain k x k convolution. Its weight is stored in rows, (O, k^2, I/g)."""

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
    """A 1x1 convolution. Its weight is (O, I/g, 1, 1)."""

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

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_constants(self.weight)

    def constants(self) -> dict[str, Tensor]:
        with torch.device('cpu'):
            return dict(filters=kernels.frequency_prior(self.out_channels, self.kernel_size))

    @classmethod
    def view(cls, name: str, tensor: Tensor, groups: int) -> Tensor:
        # One filter for each output channel, so the dimension of input channels is dropped.
        return super().view(name, tensor.flatten(1) if name == 'filters' else tensor, groups)

    @staticmethod
    def formula(taps: int, weight: Tensor, filters: Tensor) -> Tensor:
        return torch.einsum('suw,sut->sutw', weight, filters)

    def factors(self) -> list[tuple[Tensor, int]]:
        # Autograd gets a copy, because DDP broadcasts buffers in place between two passes.
        return [(self.weight, self.groups), (self.filters.clone(), self.out_channels)]


class PointwiseKxK(Branch):
    """A 1x1 convolution that starts as the identity, then a k x k convolution.

    The 1x1 kernel is a fixed ``identity`` plus a learned ``residual`` that starts at zero, both
    (M, I/g, 1, 1). M is I, or 2 I in blocks of more than four groups. The ``weight`` of the k x k
    convolution is stored in rows, (O, k^2, M/g).
    """

    names = ('residual', 'weight')
    shared = ('residual', 'identity')

    @property
    def middle_channels(self) -> int:
        """The number of channels between the two convolutions, M."""
        return self.in_channels if self.groups <= 4 else 2 * self.in_channels

    @property
    def identity(self) -> Tensor:
        """The identity E. It is not a buffer, because DDP would broadcast it in every step."""
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
    """A depthwise separable convolution: k x k with eight filters for each channel, then 1x1.

    ``depthwise`` (8, k^2, I) holds the filters in rows. ``pointwise`` (O, 8, I/g) is the weight of
    each filter in an output channel. The dimension of eight comes first, not within the channels as
    in a convolution's weight, so that channels are next to each other in memory.
    """

    names = ('depthwise', 'pointwise')
    shared = ('depthwise',)
    group_dims = dict(depthwise=2)

    def new_parameters(self) -> dict[str, Tensor]:
        # The initial values depend on the shapes of the two convolutions' weights.
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
    """Two 1x1 convolutions in a row: the second branch of the 1x1 block.

    One of the two kernels is square and starts as the identity.
    """

    names = ('first', 'second')
    shared = ('first',)

    @classmethod
    def fits(cls, kernel_size: int) -> bool:
        return kernel_size == 1

    @property
    def first_is_square(self) -> bool:
        """Whether the first kernel is the square one: if there are more output channels."""
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


#: All branches by the names that configs and state dicts use.
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
    """The weight of a depthwise convolution (8 I, 1, k, k) as the branch stores it, (8, k^2, I)."""
    filters = depthwise.flatten(1).unflatten(0, (-1, SEPARABLE_MULTIPLIER))
    return filters.permute(1, 2, 0).contiguous()


def shares_first(pointwise: Tensor) -> Tensor:
    """The weight of a 1x1 convolution (O, 8 I/g, 1, 1) as the branch stores it, (O, 8, I/g)."""
    shares = pointwise.flatten(1).unflatten(1, (-1, SEPARABLE_MULTIPLIER))
    return shares.transpose(1, 2).contiguous()


def plus_identity(residual: Tensor, identity: Tensor | None = None) -> Tensor:
    """``residual`` (s, m, w) plus a stack of identities, which ``identity`` may already contain."""
    if identity is not None:
        return residual + identity
    first = residual.clone()
    for offset in range(0, first.shape[1], first.shape[2]):
        first.diagonal(-offset, 1, 2).add_(1)
    return first
