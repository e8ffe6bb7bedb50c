"""Deformable convolution, v1 (arXiv 1703.06211) and v2 with a mask (arXiv 1811.11168).

Shapes: feature maps ``(images, channels, h, w)``, kernels ``(out, channels / groups, kh, kw)``,
offsets ``(images, 2 * deform_groups * kh * kw, h', w')``, pairs of y and x in pixels, masks
``(images, deform_groups * kh * kw, h', w')``, output ``(images, out, h', w')``. What is written to
was made by the caller. ``columns``, ``ones`` and ``im2col_step`` are room and chunks for the
compiled operators.
"""

import torch
import torchvision  # noqa: F401  (its operators)
from torch import Tensor

from .precision import full, operator


@operator
def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns, ones, **geometry
) -> None:
    """Version 1, written to ``output``."""
    _forward(output, input, weight, offset, None, None, _geometry_1(geometry))


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns,
    **geometry,
) -> None:
    """The gradients of version 1 with respect to the feature maps and the offsets."""
    gradients = _backward(grad_output, input, weight, offset, None, _geometry_1(geometry))
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns,
    ones,
    scale: float,
    **geometry,
) -> None:
    """``scale`` times the gradient of version 1 with respect to the kernel."""
    weight = torch.zeros_like(grad_weight)  # this gradient does not depend on it
    gradients = _backward(grad_output, input, weight, offset, None, _geometry_1(geometry))
    grad_weight.copy_(scale * gradients[1])


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns,
    with_bias: bool,
    **geometry,
) -> None:
    """Version 2, written to ``output``."""
    bias = bias if with_bias else None
    _forward(output, input, weight, offset, mask, bias, _geometry_2(geometry))


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones,
    offset: Tensor,
    mask: Tensor,
    columns,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry,
) -> None:
    """The gradients of version 2 with respect to all that it takes."""
    gradients = _backward(grad_output, input, weight, offset, mask, _geometry_2(geometry))
    for room, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), gradients):
        room.copy_(gradient)
    if with_bias:
        grad_bias.copy_(full(grad_output)[0].sum((0, 2, 3)))


def _geometry_1(g):
    sizes = g['dH'], g['dW'], g['padH'], g['padW'], g['dilationH'], g['dilationW']
    return *sizes, g['group'], g['deformable_group']


def _geometry_2(g):
    names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    return *[g[name] for name in names], g['group'], g['deformable_group']


def _forward(output, input, weight, offset, mask, bias, geometry):
    tensors = _working(input, weight, offset, mask, bias)
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None))


def _backward(gradient, input, weight, offset, mask, geometry):
    """The gradients of the feature maps, the kernel, the offsets, the mask."""
    tensors = _working(input, weight, offset, mask, None)
    of_input, of_weight, of_offset, of_mask, _ = torch.ops.torchvision._deform_conv2d_backward(
        full(gradient)[0].contiguous(), *tensors, *geometry, mask is not None
    )
    on_map = _on_map(tensors[2], input.shape[2:], weight.shape[2:], geometry)
    of_offset.unflatten(1, (*on_map.shape[1:4], 2)).mul_(on_map)
    return of_input, of_weight, of_offset, of_mask


def _on_map(offset, size, kernel, geometry):
    """Which samples see the map, ``(images, deform_groups, kh, kw, 1, h', w')``.

    One pixel outside exactly, where padding starts with offsets of 0, the kink has two slopes:
    torchvision gives the inner one, mmcv 0, and so do the offsets' gradients here.
    """
    inside = []
    for axis, (stride, pad, dilation) in enumerate(zip(*[geometry[i : i + 2] for i in (0, 2, 4)])):
        taps = torch.arange(kernel[axis], device=offset.device) * dilation
        places = torch.arange(offset.shape[2 + axis], device=offset.device) * stride - pad
        taps = taps[:, None, None, None] if axis == 0 else taps[:, None, None]
        places = places[:, None] if axis == 0 else places
        pairs = offset.unflatten(1, (-1, *kernel, 2))
        where = taps + places + pairs[:, :, :, :, axis]
        inside.append((where > -1) & (where < size[axis]))
    return (inside[0] & inside[1])[:, :, :, :, None]


def _working(input, weight, offset, mask, bias):
    # torchvision's operator wants a mask and a bias, used or not.
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return full(input, weight, offset, mask, bias)
