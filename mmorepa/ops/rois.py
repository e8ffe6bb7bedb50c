"""Regions of interest, ``(n, 5)``: the image's index and a box in the image's pixels."""

import torch
import torchvision
from torch import Tensor

from .precision import full, operator

MAXIMUM = 0


@operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al., arXiv 1703.06870): regions sampled to one size.

    Args:
        input: feature maps, ``(images, channels, h, w)``.
        rois: ``(n, 5)``.
        output: written to, ``(n, channels, aligned_height, aligned_width)``.
        argmax_y: written to for the maximum, like the output: which sample of its bin it is.
        argmax_x: likewise across.
        aligned_height: bins down.
        aligned_width: bins across.
        spatial_scale: pixels of the feature map per pixel of the image.
        sampling_ratio: samples of a bin each way; 0 for about one a pixel of the feature map.
        pool_mode: 0 takes the maximum of a bin's samples, 1 their average.
        aligned: whether the middle of pixel 0 is at 0 rather than at 0.5.
    """
    (image,) = full(input)
    rois = rois.to(image)
    bins = (aligned_height, aligned_width)
    if pool_mode != MAXIMUM:
        output.copy_(
            torchvision.ops.roi_align(image, rois, bins, spatial_scale, sampling_ratio, aligned)
        )
        return
    # A sample is a bin of its own in a finer grid of bins with one sample each.
    for some, grid in _grids(rois, bins, spatial_scale, sampling_ratio, aligned):
        fine = [n * g for n, g in zip(bins, grid)]
        samples = torchvision.ops.roi_align(image, rois[some], fine, spatial_scale, 1, aligned)
        samples = samples.unflatten(3, (-1, grid[1])).unflatten(2, (-1, grid[0]))
        best, where = samples.transpose(3, 4).flatten(4).max(4)
        output[some] = best.to(output.dtype)
        argmax_y[some] = (where // grid[1]).to(argmax_y.dtype)
        argmax_x[some] = (where % grid[1]).to(argmax_x.dtype)


@operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of RoIAlign with respect to the feature maps, written to ``grad_input``.

    Shapes and meanings are those of ``roi_align_forward``.
    """
    (gradient,) = full(grad_output)
    rois = rois.to(gradient)
    bins = (aligned_height, aligned_width)

    def pull_back(gradient, rois, sampling_ratio):
        return torch.ops.torchvision._roi_align_backward(
            gradient.contiguous(),
            rois,
            spatial_scale,
            *gradient.shape[2:],
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )

    if pool_mode != MAXIMUM:
        grad_input.copy_(pull_back(gradient, rois, sampling_ratio))
        return
    total = torch.zeros_like(grad_input, dtype=gradient.dtype)
    for some, grid in _grids(rois, bins, spatial_scale, sampling_ratio, aligned):
        part = gradient[some]
        where = (argmax_y[some] * grid[1] + argmax_x[some]).long()
        samples = part.new_zeros(*part.shape, grid[0] * grid[1])
        samples.scatter_(4, where[..., None], part[..., None])
        samples = samples.unflatten(4, grid).transpose(3, 4).flatten(4).flatten(2, 3)
        total += pull_back(samples, rois[some], 1)
    grad_input.copy_(total)


def _grids(rois, bins, spatial_scale, sampling_ratio, aligned):
    """The regions that have as many samples a bin: their indices, and samples down and across."""
    if sampling_ratio > 0:
        yield slice(None), (sampling_ratio, sampling_ratio)
        return
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - 0.5 * aligned
    size = corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    grids = (size / size.new_tensor(bins)).ceil().clamp(min=1).long()
    for grid in grids.unique(dim=0):
        yield (grids == grid).all(1).nonzero()[:, 0], tuple(grid.tolist())


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool (Girshick, arXiv 1504.08083): the maximum of each bin of whole pixels.

    torchvision's rounds a region to whole pixels first, mmcv's does not.

    Args:
        input: feature maps, ``(images, channels, h, w)``.
        rois: ``(n, 5)``.
        output: written to, ``(n, channels, pooled_height, pooled_width)``; 0 where a bin is empty.
        argmax: written to, like the output: the place of the maximum in its map, -1 for none.
        pooled_height: bins down.
        pooled_width: bins across.
        spatial_scale: pixels of the feature map per pixel of the image.
    """
    (image,) = full(input)
    rois = rois.to(image)
    height, width = image.shape[2:]
    low = rois[:, [2, 1]] * spatial_scale
    high = (rois[:, [4, 3]] + 1) * spatial_scale
    for i, index in enumerate(rois[:, 0].long().tolist()):
        maps = image[index]
        y, no_row = _pixels(low[i, 0], high[i, 0], pooled_height, height)
        x, no_column = _pixels(low[i, 1], high[i, 1], pooled_width, width)
        places = y[:, None, :, None] * width + x[None, :, None, :]
        best, which = maps.flatten(1)[:, places].flatten(3).max(3)
        where = places.flatten(2).expand(len(maps), -1, -1, -1).gather(3, which[..., None])
        empty = no_row[:, None] | no_column
        output[i] = best.masked_fill(empty, 0).to(output.dtype)
        argmax[i] = where[..., 0].masked_fill(empty, -1).to(argmax.dtype)


def _pixels(low, high, bins, size):
    """The pixels of each bin along a line, the last repeated up to one length; which have none."""
    edges = torch.arange(bins, device=low.device)
    step = (high - low) / bins
    first = (edges * step + low).floor().clamp(0, size).long()
    last = ((edges + 1) * step + low).ceil().clamp(0, size).long() - 1
    empty = (last < first) | (high <= low)
    most = int((last - first).max().clamp(min=0)) + 1
    pixels = first[:, None] + torch.arange(most, device=low.device)
    return pixels.minimum(last[:, None]).clamp(0, size - 1), empty


@operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The gradient of RoIPool with respect to the feature maps, written to ``grad_input``.

    Shapes and meanings are those of ``roi_pool_forward``.
    """
    (gradient,) = full(grad_output)
    total = torch.zeros_like(grad_input, dtype=gradient.dtype).flatten(2)
    images = rois[:, 0].long()[:, None, None]
    channels = torch.arange(total.shape[1], device=rois.device)[:, None]
    where, gradient = argmax.flatten(2).long(), gradient.flatten(2)
    total.index_put_((images, channels, where.clamp(min=0)), gradient * (where >= 0), True)
    grad_input.copy_(total.view_as(grad_input))
