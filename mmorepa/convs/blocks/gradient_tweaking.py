"""Gradient tweaking: the effect of a block's branches on the gradient of its kernel.

Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023, sec. 3.1,
train a plain network with gradients that are multiplied by constants in place of the branches of
RepVGG. This module has the constants of OREPA's branches.

One step of gradient descent with the learning rate lr on all parameters of a block moves its kernel
``W``, to first order, by ``-lr J J^T dW``. Here ``dW`` is the gradient of the kernel and ``J`` the
Jacobian of the kernel with respect to the parameters. For linear branches with constant scales,
``W = sum of s_b L_b(p_b)``, the matrix ``J J^T = sum of s_b^2 L_b L_b^T`` is constant. Momentum and
weight decay are linear too, so the steps of the kernel are then exactly those of the branches.
Where parameters multiply each other, ``J J^T`` depends on them. Its expectation over their initial
values, which are independent and have mean zero, is used instead. The expectation acts only on the
k^2 taps of a kernel, never across channels, and has a closed form.

All matrices are (1, k^2, k^2), the same for all output channels, or (O, k^2, k^2), in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from .. import kernels
from ..orepa import branches
from ..orepa.block import BranchSum, DeepLinearStem, OREPAConv2d
from ..orepa.branches import Branch


class Moments(NamedTuple):
    """Moments of a fresh kernel, in expectation over its initial values.

    Attributes:
        covariance (Tensor): ``E[W W^T]`` over the taps of one pair of channels. Different pairs are
            not correlated.
        mobility (Tensor): ``E[J J^T]``, the matrix by which a gradient is multiplied.
    """

    covariance: Tensor
    mobility: Tensor


def multiplier(block: OREPAConv2d, train_scales: bool = True) -> Tensor:
    """The constant by which the gradient of a kernel is multiplied, ``E[J J^T]``.

    It depends on the geometry, the choice of branches, their initial scales and the slope of the
    initial values, but not on the values drawn.

    Args:
        block (OREPAConv2d): A fresh block.
        train_scales (bool): Whether the scales count as parameters. Each scale adds the covariance
            of its branch. For the frequency prior, whose scale starts at zero, this is the whole
            contribution. Defaults to True.

    Returns:
        Tensor: (1, k^2, k^2) or (O, k^2, k^2), symmetric, float64.

    Example:
        >>> block = OREPAConv2d(4, 8, 3, branches=['original', 'pointwise'])
        >>> multiplier(block, train_scales=False)[0].diagonal()[3:6].tolist()
        [0.0625, 1.0625, 0.0625]
    """
    kernel = block.kernel
    if isinstance(kernel, DeepLinearStem):
        return _of_stem(kernel, train_scales)
    return _of_sum(kernel, train_scales).mobility


def tweak(grad: Tensor, multiplier: Tensor) -> Tensor:
    """Multiply the gradient of a kernel.

    Args:
        grad (Tensor): (O, I/g, k, k).
        multiplier (Tensor): (1, k^2, k^2) or (O, k^2, k^2), symmetric.

    Returns:
        Tensor: The tweaked gradient, with the shape of ``grad``.
    """
    if multiplier.shape[1] == 1:
        return grad * multiplier[:, :, :, None]
    if len(multiplier) == 1:
        # One product for all channels instead of one for each.
        return (grad.flatten(2) @ multiplier[0]).view(grad.shape)
    return torch.bmm(grad.flatten(2), multiplier).view(grad.shape)


def compose(current: Tensor, following: Tensor, out_channels: int, groups: int = 1) -> Tensor:
    """The moments after one more layer of :func:`mmorepa.convs.kernels.compose_chain`.

    The factors are independent, so the moment of their product is the product of their moments,
    summed over the channels between them.

    Args:
        current (Tensor): The moments of the kernel so far, (1 or O, m^2, m^2).
        following (Tensor): The moments of the next 3x3 kernel, (1 or O, 9, 9).
        out_channels (int): The number of output channels of both, O.
        groups (int): The number of groups, g.

    Returns:
        Tensor: The moments of the composition, (1 or O, (m + 2)^2, (m + 2)^2).
    """
    width = out_channels // groups
    if len(current) == 1:
        current = current * width
    else:
        current = current.unflatten(0, (groups, width)).sum(1)
    size = math.isqrt(current.shape[1])
    # Height and width come twice, once for each of the two taps that are multiplied.
    image = F.pad(current.view(-1, *[size] * 4), [2] * 8)
    for dim in range(1, 5):
        image = image.unfold(dim, 3, 1)
    patches = image.reshape(len(current), (size + 2) ** 4, 81)
    taps = following.reshape(len(following), 81)
    if len(current) > 1:
        taps = taps.expand(out_channels, -1)
    if len(taps) == 1 or len(patches) == 1:
        composed = taps @ patches[0].T
    else:
        composed = taps.unflatten(0, (groups, width)) @ patches.transpose(1, 2)
    return composed.reshape(-1, (size + 2) ** 2, (size + 2) ** 2)


def _of_stem(stem: DeepLinearStem, train_scales: bool) -> Tensor:
    first, *others = [_of_sum(layer, train_scales) for layer in stem]
    step = partial(compose, out_channels=next(stem[0].children()).out_channels, groups=stem.groups)
    fresh, moves = first
    for layer in others:
        # This is the product rule: this layer moves, or one of those before it.
        moves = step(moves, layer.covariance) + step(fresh, layer.mobility)
        fresh = step(fresh, layer.covariance)
    return moves


def _of_sum(block: BranchSum, train_scales: bool) -> Moments:
    scaled = [_under_scale(branch, train_scales) for branch in block.children()]
    return Moments(*[reduce(torch.add, parts) for parts in zip(*scaled)])


def _under_scale(branch: Branch, train_scales: bool) -> Moments:
    if type(branch) not in _MOMENTS:
        raise UserError(
            f'TweakedOREPA knows no constants for the branch {type(branch).__name__}; it has them '
            f'for {", ".join(kind.__name__ for kind in _MOMENTS)}: leave it out, or train OREPA'
        )
    covariance, mobility = _MOMENTS[type(branch)](branch)
    if branch.scale is None:
        return Moments(covariance, mobility)
    square = branch.scale[0].item() ** 2
    moves = square * mobility
    # The derivative with respect to the scale is the kernel that it multiplies.
    return Moments(square * covariance, moves + covariance if train_scales else moves)


def _variance(branch: Branch, fan_in: int) -> float:
    """The variance of the initial values of a convolution with this fan-in."""
    return 2 / ((1 + branch.slope**2) * fan_in)


def _identity(branch: Branch) -> Tensor:
    return torch.eye(branch.kernel_size**2, dtype=torch.float64).unsqueeze(0)


def _width(branch: Branch) -> int:
    return branch.in_channels // branch.groups


def _original(branch: branches.Original) -> Moments:
    identity = _identity(branch)
    return Moments(_variance(branch, _width(branch) * branch.kernel_size**2) * identity, identity)


def _spread(branch: branches.Pointwise, pattern: Tensor) -> Moments:
    """The moments of a 1x1 kernel that is spread over the taps by a pattern, (1 or O, k^2)."""
    outer = pattern[:, :, None] * pattern[:, None, :]
    return Moments(_variance(branch, _width(branch)) * outer, outer)


def _pointwise(branch: branches.Pointwise) -> Moments:
    taps = branch.kernel_size**2
    return _spread(branch, _identity(branch)[:, taps // 2])


def _average(branch: branches.Average) -> Moments:
    taps = branch.kernel_size**2
    return _spread(branch, torch.full((1, taps), 1 / taps, dtype=torch.float64))


def _prior(branch: branches.Prior) -> Moments:
    filters = kernels.frequency_prior(branch.out_channels, branch.kernel_size)
    return _spread(branch, filters.flatten(1))


def _pointwise_kxk(branch: branches.PointwiseKxK) -> Moments:
    middle = len(branch.identity)
    inside = middle // branch.groups
    variance = _variance(branch, inside * branch.kernel_size**2)
    copies = middle // branch.in_channels  # how often the fixed identity has each input channel
    identity = _identity(branch)
    return Moments(copies * variance * identity, (copies + inside * variance) * identity)


def _separable(branch: branches.Separable) -> Moments:
    count = branches.SEPARABLE_MULTIPLIER
    depthwise = _variance(branch, branch.kernel_size**2)
    pointwise = _variance(branch, count * _width(branch))
    identity = _identity(branch)
    covariance = count * depthwise * pointwise * identity
    return Moments(covariance, count * (depthwise + pointwise) * identity)


def _pointwise_pointwise(branch: branches.PointwisePointwise) -> Moments:
    width, out_width = _width(branch), branch.out_channels // branch.groups
    variance = _variance(branch, width)
    # The square factor starts as the identity. How far it moves depends on the other one's length.
    length = width if out_width > width else out_width
    identity = _identity(branch)
    return Moments(variance * identity, (1 + length * variance) * identity)


_MOMENTS: dict[type[Branch], Callable[[Branch], Moments]] = {
    branches.Original: _original,
    branches.Average: _average,
    branches.Prior: _prior,
    branches.PointwiseKxK: _pointwise_kxk,
    branches.Pointwise: _pointwise,
    branches.Separable: _separable,
    branches.PointwisePointwise: _pointwise_pointwise,
}
