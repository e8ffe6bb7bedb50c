"""The branches of an OREPA block (paper, sec. 3.3): one small module each, addressed by name.

A branch knows three things about itself. The one ``kernel()`` it amounts to is the plain statement
of the paper's formula, and what the other two are tested against. The ``factors()`` are the
convolutions it would be over a feature map: the multi-branch network of the paper's offline
comparison. And ``add_rows()``, or ``term()`` where it is compiled, with its derivative
``pull_back()`` is what training runs, see :mod:`mmorepa.convs.fused`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .matmul import matmul
from .rows import as_kernel, as_rows, dot, goes_in_passes, is_fused, part_length, scale_, scaled

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
        matmul_dtype (torch.dtype, optional): Of the products of matrices in training, see
            :mod:`mmorepa.convs.matmul`. That of the parameters by default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        slope: float,
        scale: float | None,
        matmul_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.matmul_dtype = matmul_dtype
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.groups = groups
        self.slope = slope
        if scale is None:
            self.register_parameter('scale', None)
        else:
            self.scale = nn.Parameter(torch.full((out_channels,), float(scale)))

    def matmul(self, a: Tensor, b: Tensor, near_identity: str | None = None, out=None) -> Tensor:
        """:func:`mmorepa.convs.matmul.matmul`, rounded if asked for and training in float32."""
        rounds = self.training and a.dtype == torch.float32
        return matmul(a, b, self.matmul_dtype if rounds else None, near_identity, out)

    def new_weight(self, *shape: int) -> Tensor:
        """A convolution's weight with initial values, ``kaiming_uniform_(a=slope)``."""
        return nn.init.kaiming_uniform_(torch.empty(*shape), a=self.slope)

    def scaled(self, kernel: Tensor) -> Tensor:
        """``kernel`` (O, ...) under this branch's scaling layer, if it has one."""
        return scaled(kernel, self.scale)

    def kernel(self) -> Tensor:
        """The branch as one scaled kernel, (O, I/g, k, k)."""
        raise NotImplementedError

    def factors(self) -> list[tuple[Tensor, int]]:
        """The branch as convolutions in turn, without its scale: (weight, groups) each.

        A weight is 1x1 or k x k; at most one of them is k x k.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and constants by name, without those that are None."""
        own = {**self._parameters, **self._buffers}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def term(self, **tensors: Tensor) -> Tensor:
        """:meth:`kernel` as rows, (O, k^2, I/g), or with a 1 for k^2 where all are alike.

        One expression without writes in place, for a compiler to fuse with those of the others.

        Args:
            tensors: As of :meth:`tensors`.
        """
        raise NotImplementedError

    def new_rows(self, **tensors: Tensor) -> Tensor:
        """:meth:`kernel` as rows, (O, k^2, I/g); arguments as of :meth:`add_rows`."""
        width = self.in_channels // self.groups
        sample = next(iter(tensors.values()))
        rows = sample.new_zeros(self.out_channels, self.kernel_size**2, width)
        self.add_rows(rows, **tensors)
        return rows

    def add_rows(self, rows: Tensor, **tensors: Tensor) -> None:
        """Add :meth:`kernel` to ``rows``, in place; for all branches but the one that begins.

        Args:
            rows (Tensor): (O, k^2, I/g), see :mod:`mmorepa.convs.rows`.
            tensors: As of :meth:`tensors`.
        """
        rows.add_(self.term(**tensors))

    def pull_back(self, grad: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
        """The gradients of the parameters, by name, where that of the kernel is ``grad``.

        Args:
            grad (Tensor): (O, k^2, I/g).
            tensors: As of :meth:`tensors`.
        """
        raise NotImplementedError


class Original(Branch):
    """The plain k x k convolution; its weight is stored in rows, (O, k^2, I/g)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        width, size = self.in_channels // self.groups, self.kernel_size
        self.weight = nn.Parameter(as_rows(self.new_weight(self.out_channels, width, size, size)))

    def kernel(self) -> Tensor:
        return self.scaled(as_kernel(self.weight, self.kernel_size))

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(as_kernel(self.weight, self.kernel_size), self.groups)]

    def term(self, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        return scaled(weight, scale)

    def add_rows(self, rows: Tensor, weight: Tensor, scale: Tensor | None = None) -> None:
        add_scaled(rows, weight, scale)

    def pull_back(self, grad: Tensor, weight: Tensor, scale: Tensor | None = None):
        return dict(weight=scaled(grad, scale), scale=dot(grad, weight))

    def pull_back_in_place(self, grad: Tensor, weight: Tensor, scale: Tensor | None = None):
        """As :meth:`pull_back`; ``grad`` becomes the gradient of the weight."""
        to_scale = dot(grad, weight)
        return dict(weight=scale_(grad, scale), scale=to_scale)


class PointwiseBranch(Branch):
    """What branches that start from one 1x1 kernel (O, I/g, 1, 1) share.

    Their kernel is that one, spread over k x k by constants of the subclass.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        width = self.in_channels // self.groups
        self.weight = nn.Parameter(self.new_weight(self.out_channels, width, 1, 1))

    def gather(self, grad: Tensor, **constants: Tensor) -> Tensor:
        """The gradient of what is spread, (O, 1, I/g), out of the kernel's, (O, k^2, I/g)."""
        raise NotImplementedError

    def pull_back(self, grad: Tensor, weight: Tensor, scale: Tensor | None = None, **constants):
        gathered = self.gather(grad, **constants)
        return dict(
            weight=as_kernel(scaled(gathered, scale), 1), scale=dot(gathered, as_rows(weight))
        )


class Pointwise(PointwiseBranch):
    """A 1x1 convolution."""

    def kernel(self) -> Tensor:
        return kernels.centre(self.scaled(self.weight), self.kernel_size)

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.weight, self.groups)]

    def term(self, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        around = self.kernel_size**2 // 2
        return F.pad(scaled(as_rows(weight), scale), [0, 0, around, around])

    def add_rows(self, rows: Tensor, weight: Tensor, scale: Tensor | None = None) -> None:
        add_scaled(self._centre(rows), as_rows(weight), scale)

    def gather(self, grad: Tensor) -> Tensor:
        return self._centre(grad)

    def _centre(self, rows: Tensor) -> Tensor:
        return rows.narrow(1, self.kernel_size**2 // 2, 1)


class Average(PointwiseBranch):
    """A 1x1 convolution, then an average over k x k."""

    def kernel(self) -> Tensor:
        size = self.kernel_size
        return self.scaled(self.weight / size**2).expand(-1, -1, size, size)

    def factors(self) -> list[tuple[Tensor, int]]:
        size = self.kernel_size
        box = self.weight.new_full((self.out_channels, 1, size, size), 1 / size**2)
        return [(self.weight, self.groups), (box, self.out_channels)]

    def term(self, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        return scaled(as_rows(weight), scale) / self.kernel_size**2

    def gather(self, grad: Tensor) -> Tensor:
        return grad.mean(1, keepdim=True)


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

    def term(self, weight: Tensor, filters: Tensor, scale: Tensor | None = None) -> Tensor:
        return filters.reshape(len(weight), -1, 1) * scaled(as_rows(weight), scale)

    def add_rows(
        self, rows: Tensor, weight: Tensor, filters: Tensor, scale: Tensor | None = None
    ) -> None:
        rows.addcmul_(filters.reshape(len(rows), -1, 1), scaled(as_rows(weight), scale))

    def gather(self, grad: Tensor, filters: Tensor) -> Tensor:
        if is_fused():
            return (filters.reshape(len(grad), -1, 1) * grad).sum(1, keepdim=True)
        return filters.reshape(len(grad), 1, -1) @ grad


class PointwiseKxK(Branch):
    """A 1x1 convolution that starts as the identity, then a k x k one.

    The 1x1 kernel is a fixed identity E plus a learned ``residual`` that starts at zero. It has
    M = I channels inside, 2 I in blocks of more than four groups. The ``weight`` of the k x k one
    is stored in rows, (O, k^2, M/g).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        middle = self.in_channels if self.groups <= 4 else 2 * self.in_channels
        size = self.kernel_size
        identity = kernels.grouped_identity(middle, self.in_channels, self.groups)
        self.register_buffer('identity', identity, persistent=False)
        self.residual = nn.Parameter(torch.zeros_like(identity))
        weight = self.new_weight(self.out_channels, middle // self.groups, size, size)
        self.weight = nn.Parameter(as_rows(weight))

    def kernel(self) -> Tensor:
        (first, _), (second, _) = self.factors()
        return self.scaled(kernels.compose_pointwise(first, second, self.groups))

    def factors(self) -> list[tuple[Tensor, int]]:
        second = as_kernel(self.weight, self.kernel_size)
        return [(self.identity + self.residual, self.groups), (second, self.groups)]

    def new_rows(
        self,
        identity: Tensor,
        residual: Tensor,
        weight: Tensor,
        scale: Tensor | None = None,
    ) -> Tensor:
        first, second = self._first(identity, residual), self._second(weight)
        product = self.matmul(second, first, near_identity='b')
        return scale_(product.view(self.out_channels, self.kernel_size**2, -1), scale)

    def pull_back(
        self,
        grad: Tensor,
        identity: Tensor,
        residual: Tensor,
        weight: Tensor,
        scale: Tensor | None = None,
    ):
        first, second = self._first(identity, residual), self._second(weight)
        # One new tensor of this size: first the scaled gradient, then that of the weight.
        buffer = scaled(grad, scale) if scale is not None else grad.clone()
        grouped = buffer.view(*second.shape[:2], -1)
        to_residual = self.matmul(second.mT, grouped).reshape(residual.shape)
        to_weight = self.matmul(
            grad.view(grouped.shape),
            first.mT,
            near_identity='b',
            out=grouped if second.shape[2] == grouped.shape[2] else None,
        )
        to_weight = to_weight.view(weight.shape)
        to_scale = dot(to_weight, weight)
        return dict(residual=to_residual, weight=scale_(to_weight, scale), scale=to_scale)

    def _first(self, identity: Tensor, residual: Tensor) -> Tensor:
        """(g, M/g, I/g)"""
        return (identity + residual).reshape(self.groups, -1, identity.shape[1])

    def _second(self, weight: Tensor) -> Tensor:
        """(g, k^2 O/g, M/g)"""
        return weight.reshape(self.groups, -1, weight.shape[2])


class Separable(Branch):
    """A depthwise separable convolution: k x k with eight filters a channel, then 1x1.

    ``depthwise`` (8, k^2, I) holds the filters in rows, ``pointwise`` (O, 8, I/g) what an output
    channel takes of each. The eight stand in front, not beside each other within a channel as in a
    convolution's weight, so that channels are next to each other in memory.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        count, size = SEPARABLE_MULTIPLIER, self.kernel_size
        # Initial values as of the two convolutions, whose shapes they depend on.
        depthwise = self.new_weight(count * self.in_channels, 1, size, size)
        width = count * self.in_channels // self.groups
        pointwise = self.new_weight(self.out_channels, width, 1, 1)
        self.depthwise = nn.Parameter(filters_first(depthwise))
        self.pointwise = nn.Parameter(shares_first(pointwise))

    def kernel(self) -> Tensor:
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

    def term(self, depthwise: Tensor, pointwise: Tensor, scale: Tensor | None = None) -> Tensor:
        filters = self._filters(depthwise)
        shares = self._grouped(scaled(pointwise, scale))
        if is_fused():
            each = range(SEPARABLE_MULTIPLIER)
            rows = sum(shares[:, :, e, None] * filters[:, None, e] for e in each)
        else:
            rows = torch.einsum('goei,geki->goki', shares, filters)
        return rows.reshape(len(pointwise), -1, rows.shape[3])

    def add_rows(
        self, rows: Tensor, depthwise: Tensor, pointwise: Tensor, scale: Tensor | None = None
    ) -> None:
        if not goes_in_passes(rows):
            return super().add_rows(rows, depthwise=depthwise, pointwise=pointwise, scale=scale)
        filters = self._filters(depthwise)
        parts = zip(*self._in_parts(self._grouped(rows), pointwise, scale))
        for some_rows, some_shares, some_scales in parts:
            some_shares = some_shares * some_scales
            for e in range(SEPARABLE_MULTIPLIER):
                some_rows.addcmul_(some_shares[:, :, e, None], filters[:, None, e])

    def pull_back(
        self, grad: Tensor, depthwise: Tensor, pointwise: Tensor, scale: Tensor | None = None
    ):
        if is_fused():
            return self._pull_back_fused(grad, depthwise, pointwise, scale)
        filters = self._filters(depthwise)
        grad = self._grouped(grad)
        if goes_in_passes(grad):
            to_filters, to_pointwise = self._pull_back_in_passes(grad, filters, pointwise, scale)
        else:
            shares = self._grouped(scaled(pointwise, scale))
            to_filters = torch.einsum('goki,goei->geki', grad, shares)
            to_pointwise = torch.einsum('goki,geki->goei', grad, filters).reshape(pointwise.shape)
        to_scale = dot(to_pointwise, pointwise)
        return dict(
            depthwise=to_filters.permute(1, 2, 0, 3).flatten(2),
            pointwise=scale_(to_pointwise, scale),
            scale=to_scale,
        )

    def _pull_back_fused(
        self, grad: Tensor, depthwise: Tensor, pointwise: Tensor, scale: Tensor | None
    ):
        # The unscaled kernel once more, rather than an unscaled gradient in memory.
        to_scale = dot(grad, self.term(depthwise, pointwise))
        shares, filters = self._grouped(scaled(pointwise, scale)), self._filters(depthwise)
        to_filters = (shares.unsqueeze(3) * self._grouped(grad).unsqueeze(2)).sum(1)
        grad = self._grouped(scaled(grad, scale))
        to_pointwise = (grad.unsqueeze(2) * filters.unsqueeze(1)).sum(3)
        return dict(
            depthwise=to_filters.permute(1, 2, 0, 3).flatten(2),
            pointwise=to_pointwise.reshape(pointwise.shape),
            scale=to_scale,
        )

    def _pull_back_in_passes(
        self, grad: Tensor, filters: Tensor, pointwise: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        to_pointwise = torch.zeros_like(pointwise)
        # (g, 32, 8, k^2, I/g): sums beside each other, since one would be too short a vector.
        beside = min(32, grad.shape[1])
        sums = grad.new_zeros(
            self.groups, beside, SEPARABLE_MULTIPLIER, grad.shape[2], grad.shape[3]
        )
        parts = zip(
            *self._in_parts(grad, pointwise, scale),
            self._grouped(to_pointwise).split(part_length(grad, 1), 1),
        )
        for some_grad, some_shares, some_scales, to_shares in parts:
            for position in range(grad.shape[2]):
                to_shares.addcmul_(some_grad[:, :, position, None], filters[:, None, :, position])
            some_shares = some_shares * some_scales
            for one_grad, one_share in zip(
                some_grad.split(beside, 1), some_shares.split(beside, 1)
            ):
                sums[:, : one_grad.shape[1]].addcmul_(one_share.unsqueeze(3), one_grad.unsqueeze(2))
        return sums.sum(1), to_pointwise

    def _in_parts(self, rows: Tensor, pointwise: Tensor, scale: Tensor | None) -> list[tuple]:
        """Parts of ``rows`` (g, O/g, k^2, I/g), of the shares and of the scales that go with them.

        A part is what a core's cache can hold.
        """
        if scale is None:
            scale = pointwise.new_ones(len(pointwise))
        tensors = rows, self._grouped(pointwise), self._grouped(scale.reshape(-1, 1, 1))
        return [tensor.split(part_length(rows, 1), 1) for tensor in tensors]

    def _filters(self, depthwise: Tensor) -> Tensor:
        """(g, 8, k^2, I/g)"""
        return depthwise.unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3)

    def _grouped(self, rows: Tensor) -> Tensor:
        """(O, ...) as (g, O/g, ...)"""
        return rows.view(self.groups, -1, *rows.shape[1:])


class PointwisePointwise(Branch):
    """Two 1x1 convolutions, the square one starting as the identity (the 1x1 block's second)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        in_width = self.in_channels // self.groups
        out_width = self.out_channels // self.groups
        outer = (self.out_channels, in_width, 1, 1)
        self.first_is_square = out_width > in_width
        if self.first_is_square:
            square = kernels.grouped_identity(self.in_channels, self.in_channels, self.groups)
            self.first = nn.Parameter(square)
            self.second = nn.Parameter(self.new_weight(*outer))
        else:
            square = kernels.grouped_identity(self.out_channels, self.out_channels, self.groups)
            self.first = nn.Parameter(self.new_weight(*outer))
            self.second = nn.Parameter(square)

    def kernel(self) -> Tensor:
        return kernels.compose_pointwise(self.first, self.scaled(self.second), self.groups)

    def factors(self) -> list[tuple[Tensor, int]]:
        return [(self.first, self.groups), (self.second, self.groups)]

    def add_rows(
        self, rows: Tensor, first: Tensor, second: Tensor, scale: Tensor | None = None
    ) -> None:
        near = 'b' if self.first_is_square else 'a'
        product = self.matmul(self._grouped(second), self._grouped(first), near)
        add_scaled(rows, product.reshape(rows.shape), scale)

    def pull_back(self, grad: Tensor, first: Tensor, second: Tensor, scale: Tensor | None = None):
        near = 'b' if self.first_is_square else None
        to_second = self.matmul(self._grouped(grad), self._grouped(first).mT, near)
        to_second = to_second.reshape(len(grad), 1, -1)
        near = None if self.first_is_square else 'a'
        grad = self._grouped(scaled(grad, scale))
        to_first = self.matmul(self._grouped(second).mT, grad, near)
        return dict(
            first=to_first.reshape(first.shape),
            second=as_kernel(scaled(to_second, scale), 1),
            scale=dot(to_second, as_rows(second)),
        )

    def _grouped(self, matrix: Tensor) -> Tensor:
        """(O, n, ...) with nothing behind n as (g, O/g, n)."""
        return matrix.reshape(self.groups, len(matrix) // self.groups, -1)


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


def add_scaled(rows: Tensor, addend: Tensor, scale: Tensor | None) -> None:
    """Add ``addend``, under its scaling layer if it has one, to ``rows`` in place."""
    if scale is None:
        rows.add_(addend)
    else:
        rows.addcmul_(addend, scale.reshape(-1, 1, 1))
