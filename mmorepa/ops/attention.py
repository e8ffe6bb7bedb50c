"""Deformable attention over feature maps of several sizes (Zhu et al., arXiv 2010.04159)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full, operator


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sums of samples; mmcv itself has a form of it for the CPU.

    Args:
        value: all pixels of all maps, ``(images, pixels, heads, channels)``.
        value_spatial_shapes: rows and columns of each map, ``(levels, 2)``.
        value_level_start_index: the first pixel of each map, ``(levels,)``.
        sampling_locations: x and y from 0 to 1, ``(images, queries, heads, levels, points, 2)``.
        attention_weights: ``(images, queries, heads, levels, points)``.
        im2col_step: chunks of the compiled operator.

    Returns:
        Tensor: ``(images, queries, heads * channels)``.
    """
    working = full(value, sampling_locations, attention_weights)
    return _attend(*working, value_spatial_shapes.tolist()).to(value.dtype)


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """The gradients with respect to values, locations and weights."""
    gradient, *leaves = full(grad_output, value, sampling_locations, attention_weights)
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        output = _attend(*leaves, value_spatial_shapes.tolist())
    gradients = torch.autograd.grad(output, leaves, gradient)
    for room, part in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        room.copy_(part)


def _attend(value, locations, weights, shapes):
    images, queries, heads, _, points, _ = locations.shape
    samples = []
    for level, (h, w) in enumerate(shapes):
        start = sum(rows * columns for rows, columns in shapes[:level])
        maps = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(images * heads, -1, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples.append(F.grid_sample(maps, grid, align_corners=False))
    # (images * heads, channels, queries, levels, points)
    samples = torch.stack(samples, 3)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    summed = (samples * weights).sum((3, 4))
    return summed.view(images, -1, queries).transpose(1, 2)
