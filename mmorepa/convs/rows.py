"""Kernels as rows: (O, k^2, I/g), with the input channels next to each other in memory.

This order has three advantages. The product of the 1x1 - k x k branch needs no permuted copy of its
factors. Every other branch is a pass over memory in order. And the result is a weight in torch's
channels_last memory format without a copy. The k x k weights are stored as rows too. They stay
contiguous, whatever flattens parameters or changes the memory format of a model.
"""

from __future__ import annotations

from torch import Tensor


def as_rows(kernel: Tensor) -> Tensor:
    """(O, I/g, k, k) to (O, k^2, I/g), without a copy if the kernel is in channels_last format."""
    return kernel.permute(0, 2, 3, 1).contiguous().view(len(kernel), -1, kernel.shape[1])


def as_kernel(rows: Tensor, kernel_size: int) -> Tensor:
    """(O, k^2, I/g) to (O, I/g, k, k) in channels_last format, without a copy."""
    if kernel_size == 1:
        # This has the strides of both formats. DDP's buckets warn of those that permute() gives.
        return rows.reshape(len(rows), -1, 1, 1)
    return rows.unflatten(1, (kernel_size, kernel_size)).permute(0, 3, 1, 2)


def in_order(kernel: Tensor) -> Tensor:
    """A kernel with the strides of a fresh tensor of its shape.

    Where a dimension is one, ``contiguous()`` keeps the strides of channels_last. A convolution
    would then return its output in that format, which not every later operator can read.
    """
    return kernel.reshape(-1).view(kernel.shape)
