"""Kernels as rows: (O, k^2, I/g), the input channels next to each other.

In this order the product of the 1x1 - k x k branch needs no permuted copy of its factors, every
other branch is a pass over memory in its own order, and the result is a weight in torch's
channels_last memory format as it stands. Weights of k x k are stored as rows too: contiguous,
whatever flattens parameters or changes the memory format of a model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels

#: How many numbers to go over at a time where they are gone over again and again.
CACHED = 2**18


def as_rows(kernel: Tensor) -> Tensor:
    """(O, I/g, k, k) to (O, k^2, I/g); without a copy, if it is in channels_last format."""
    return kernel.permute(0, 2, 3, 1).contiguous().view(len(kernel), -1, kernel.shape[1])


def as_kernel(rows: Tensor, kernel_size: int) -> Tensor:
    """(O, k^2, I/g) to (O, I/g, k, k) in channels_last format, without a copy."""
    if kernel_size == 1:
        # Both formats at once; of the strides that a permutation leaves, DDP's buckets warn.
        return rows.reshape(len(rows), -1, 1, 1)
    return rows.unflatten(1, (kernel_size, kernel_size)).permute(0, 3, 1, 2)


def in_order(kernel: Tensor) -> Tensor:
    """A kernel with the strides of a fresh tensor of its shape.

    ``contiguous()`` leaves those of channels_last where a dimension is one; a convolution would
    then answer in that format, and not every operator behind it can read that.
    """
    return kernel.reshape(-1).view(kernel.shape)


def scaled(rows: Tensor, scale: Tensor | None) -> Tensor:
    """``rows`` (O, ...) times ``scale`` (O,), if there is one."""
    return rows if scale is None else kernels.scale(rows, scale)


def scale_(rows: Tensor, scale: Tensor | None) -> Tensor:
    """:func:`scaled` in place, for ``rows`` (O, m, n)."""
    return rows if scale is None else rows.mul_(scale.reshape(-1, 1, 1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner products of the rows of two tensors (O, m, n), (O,)."""
    if is_fused():
        return (a * b).flatten(1).sum(1)
    # In parts: torch writes the products down before it adds them up.
    pairs = zip(in_parts(a.flatten(1)), in_parts(b.flatten(1)))
    return torch.cat([torch.linalg.vecdot(x, y) for x, y in pairs])


def is_fused() -> bool:
    """Whether a compiler reads this, which makes one pass of what is written as many operations."""
    return torch.compiler.is_compiling()


def goes_in_passes(rows: Tensor) -> bool:
    """Whether many passes over parts in a cache are quicker here than few operations.

    So it is on a CPU, where batched products of eight numbers are slow; elsewhere each operation
    has to be launched.
    """
    return rows.device.type == 'cpu'


def in_parts(rows: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """``rows`` split up along ``dim``, each part small enough for a core's cache."""
    return rows.split(part_length(rows, dim), dim)


def part_length(rows: Tensor, dim: int = 0) -> int:
    """The length along ``dim`` of such a part."""
    if not goes_in_passes(rows):
        return rows.shape[dim]
    return max(1, CACHED * rows.shape[dim] // max(1, rows.numel()))
