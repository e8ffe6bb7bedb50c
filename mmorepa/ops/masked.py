"""Convolution at some places only (mmcv's MaskedConv2d); mmcv has no gradient of it either."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import operator


@operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """What the kernel sees at each of n places, stride 1.

    Args:
        im: feature map, ``(1, channels, h, w)``.
        mask_h_idx: rows of the places, ``(n,)``.
        mask_w_idx: columns of the places, ``(n,)``.
        col: written to, ``(channels * kernel_h * kernel_w, n)``.
        kernel_h: rows of the kernel.
        kernel_w: columns of the kernel.
        pad_h: zeros above and below.
        pad_w: zeros left and right.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    y = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    x = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, y, x].view_as(col))


@operator
def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put values at places.

    Args:
        col: values, ``(channels, n)``.
        mask_h_idx: rows of the places, ``(n,)``.
        mask_w_idx: columns of the places, ``(n,)``.
        im: written to at those places, ``(1, channels, height, width)``.
        height: rows.
        width: columns.
        channels: channels.
    """
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)
