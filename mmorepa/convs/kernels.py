"""The algebra of OREPA: pure functions from kernels to kernels.

Notation, as in the paper: O output channels, I input channels, g groups, k kernel size. A kernel
has the shape of a convolution's weight, (O, I/g, k, k); a *pointwise* kernel is (O, I/g, 1, 1).
All functions are differentiable and work in any floating-point dtype.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def scale(kernel: Tensor, factors: Tensor) -> Tensor:
    """Multiply every output channel by its own factor: the linear scaling layer (paper, sec. 3.2).

    Args:
        kernel (Tensor): (O, ...).
        factors (Tensor): (O,).

    Returns:
        Tensor: The scaled kernel, with the shape of ``kernel``.
    """
    return kernel * factors.reshape(-1, *[1] * (kernel.dim() - 1))


def centre(kernel: Tensor, kernel_size: int) -> Tensor:
    """Put a smaller kernel, usually a 1x1 one, into the middle of a k x k one, surrounded by zeros.

    Args:
        kernel (Tensor): (O, I/g, height, width), both odd and at most k.
        kernel_size (int): k, odd.

    Returns:
        Tensor: (O, I/g, k, k).
    """
    height, width = ((kernel_size - side) // 2 for side in kernel.shape[2:])
    return F.pad(kernel, [width, width, height, height])


def frequency_prior(out_channels: int, kernel_size: int) -> Tensor:
    """The constant frequency prior filters (paper, sec. 3.3, "frequency prior filter").

    In the first half of the channels the cosines run down the rows, in the other half along the
    columns::

        F[o, h, w] = cos(pi (h + 1/2) (o + 1) / k)              for o < O/2
        F[o, h, w] = cos(pi (w + 1/2) (o + 1 - O/2) / k)        otherwise

    Args:
        out_channels (int): O.
        kernel_size (int): k.

    Returns:
        Tensor: (O, 1, k, k), a depthwise kernel in float64.
    """
    channel = torch.arange(out_channels, dtype=torch.float64)
    half = out_channels / 2
    by_rows = channel < half
    frequency = torch.where(by_rows, channel + 1, channel + 1 - half)
    position = torch.arange(kernel_size, dtype=torch.float64) + 0.5
    wave = torch.cos(math.pi * frequency[:, None] * position / kernel_size)
    filters = torch.where(by_rows[:, None, None], wave[:, :, None], wave[:, None, :])
    return filters.expand(-1, kernel_size, kernel_size).unsqueeze(1).contiguous()


def grouped_identity(channels: int, in_channels: int, groups: int) -> Tensor:
    """The 1x1 kernel that passes each group's channels on, repeated until there are M channels.

    Args:
        channels (int): M, a multiple of ``in_channels``.
        in_channels (int): I.
        groups (int): g.

    Returns:
        Tensor: (M, I/g, 1, 1) with ``E[t, t mod I/g] = 1``.
    """
    width = in_channels // groups
    return torch.eye(width).repeat(channels // width, 1).reshape(channels, width, 1, 1)


def compose_pointwise(pointwise: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """The single kernel of a 1x1 convolution followed by a k x k one, both with the same groups.

    ``W[o, i] = sum over t of kernel[o, t] * pointwise[t, i]`` inside each group, at every position.

    Args:
        pointwise (Tensor): (M, I/g, 1, 1), applied first.
        kernel (Tensor): (O, M/g, k, k), applied to its output.
        groups (int): g.

    Returns:
        Tensor: (O, I/g, k, k).
    """
    out_channels, middle, *size = kernel.shape
    first = pointwise.reshape(groups, middle, -1)
    second = kernel.reshape(groups, out_channels // groups, middle, -1)
    composed = torch.einsum('gotk,gti->goik', second, first)
    return composed.reshape(out_channels, -1, *size)


def compose_last_pointwise(kernel: Tensor, pointwise: Tensor, groups: int) -> Tensor:
    """The single kernel of a k x k convolution followed by a 1x1 one, both with the same groups.

    ``W[o, i] = sum over t of pointwise[o, t] * kernel[t, i]`` inside each group, at every position.

    Args:
        kernel (Tensor): (M, I/g, k, k), applied first.
        pointwise (Tensor): (O, M/g, 1, 1), applied to its output.
        groups (int): g.

    Returns:
        Tensor: (O, I/g, k, k).
    """
    out_channels = len(pointwise)
    first = kernel.reshape(groups, len(kernel) // groups, -1)
    second = pointwise.reshape(groups, out_channels // groups, -1)
    return (second @ first).reshape(out_channels, *kernel.shape[1:])


def compose_chain(kernels: list[Tensor], groups: int = 1) -> Tensor:
    """The single kernel that the deep linear stem composes from its 3x3 kernels (paper, sec. 3.3).

    Each kernel slides over the composition so far as if over an image, *without a flip*::

        W[o, i, y, x] = sum over t, u, v of next[o, t, u, v] * current[t, i, y + u - 2, x + v - 2]

    A chain of convolutions over a feature map would need ``next`` flipped in height and width.
    Published checkpoints depend on the missing flip, so it stays.

    Args:
        kernels (list[Tensor]): The first (O, I/g, 3, 3), the others (O, O/g, 3, 3).
        groups (int): g.

    Returns:
        Tensor: (O, I/g, k, k) with k = 2 * len(kernels) + 1.
    """
    current = kernels[0].transpose(0, 1)
    for kernel in kernels[1:]:
        in_width, _, size, _ = current.shape
        out_channels = len(kernel)
        rows = kernel.reshape(groups, out_channels // groups, -1)
        # This is an explicit product because cuDNN may run a convolution in TF32, and a kernel has
        # to be exact.
        current = torch.einsum('gok,igkp->igop', rows, _patches(current, groups))
        current = current.reshape(in_width, out_channels, size + 2, size + 2)
    return current.transpose(0, 1)


def solve_chain(kernels: list[Tensor], target: Tensor, groups: int = 1) -> Tensor:
    """The last kernel of a chain whose composition is as near as possible to ``target``.

    The composition is linear in its last kernel. This is the least-squares solution; if there are
    several, the smallest.

    Args:
        kernels (list[Tensor]): All but the last, as in :func:`compose_chain`.
        target (Tensor): (O, I/g, k, k) with k = 2 * len(kernels) + 3.
        groups (int): g.

    Returns:
        Tensor: (O, O/g, 3, 3).
    """
    out_channels = len(target)
    patches = _patches(compose_chain(kernels, groups).transpose(0, 1), groups)
    left = patches.permute(1, 0, 3, 2).flatten(1, 2)
    right = target.reshape(groups, out_channels // groups, -1).transpose(1, 2)
    # pinv is used because lstsq does not support rank-deficient systems on every device.
    rows = (torch.linalg.pinv(left) @ right).transpose(1, 2)
    return rows.reshape(out_channels, -1, 3, 3)


def _patches(current: Tensor, groups: int) -> Tensor:
    """The windows of a transposed kernel (I/g, O, k, k): (I/g, g, 9 O/g, (k + 2)^2)."""
    in_width, _, size, _ = current.shape
    return F.unfold(current, 3, padding=2).reshape(in_width, groups, -1, (size + 2) ** 2)


def fold_batch_norm(kernel: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The convolution that equals a convolution followed by a BatchNorm in eval mode.

    ``kernel * gamma / sqrt(var + eps)`` and ``beta + (bias - mean) * gamma / sqrt(var + eps)``,
    computed in float64.

    Args:
        kernel (Tensor): (O, I/g, k, k).
        bias (Tensor, optional): The convolution's bias, (O,).
        norm (_BatchNorm): A BatchNorm of O channels with running statistics, affine or not.

    Returns:
        tuple[Tensor, Tensor]: Kernel (O, I/g, k, k) and bias (O,), both in float64.
    """
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    offset = -norm.running_mean.double()
    if bias is not None:
        offset = offset + bias.double()
    folded_bias = offset * gain
    if norm.bias is not None:
        folded_bias = folded_bias + norm.bias.double()
    return scale(kernel.double(), gain), folded_bias
