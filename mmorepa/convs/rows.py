"""Kernels as rows: (O, k^2, I/g), the input channels next to each other.

In this order the product of the 1x1 - k x k branch needs no permuted copy of its factors, every
other branch is a pass over memory in its own order, and the result is a weight in torch's
channels_last memory format as it stands. Weights of k x k are stored as rows too: contiguous,
whatever flattens parameters or changes the memory format of a model.
"""

from __future__ import annotations

from torch import Tensor


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
