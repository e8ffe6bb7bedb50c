"""The masks of point-wise spatial attention (PSANet, Zhao et al., ECCV 2018)."""

import torch
from torch import Tensor

from .precision import operator

COLLECT = 0


@operator
def psamask_forward(mask: Tensor, output: Tensor, psa_type: int, **sizes) -> None:
    """What each place has to say of each other, from windows round the places.

    Args:
        mask: windows, ``(images, h_mask * w_mask, h, w)``.
        output: written to, ``(images, h * w, h, w)``; 0 where a window does not reach.
        psa_type: 0 has the other place in the second dimension, 1 the window's own.
        **sizes: ``num_``, ``h_feature``, ``w_feature``, ``h_mask``, ``w_mask``, ``half_h_mask``,
            ``half_w_mask``.
    """
    where, inside = _window(mask.device, **sizes)
    values = mask.gather(1, where.expand(len(mask), -1, -1, -1)) * inside
    output.copy_(values if psa_type == COLLECT else _swapped(values))


@operator
def psamask_backward(grad_output: Tensor, grad_input: Tensor, psa_type: int, **sizes) -> None:
    """The gradient with respect to the windows, written to ``grad_input``."""
    where, inside = _window(grad_output.device, **sizes)
    gradient = grad_output if psa_type == COLLECT else _swapped(grad_output)
    where = where.expand(len(gradient), -1, -1, -1)
    grad_input.zero_().scatter_add_(1, where, gradient * inside)


def _swapped(tensor):
    return tensor.flatten(2).transpose(1, 2).reshape(tensor.shape)


def _window(
    device, num_, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
) -> tuple[Tensor, Tensor]:
    """Where each other place is in a place's window, and if it is in it, both ``(h * w, h, w)``."""

    def along(size, half):
        here = torch.arange(size, device=device)
        return here[:, None] - here + half  # (other, own)

    y = along(h_feature, half_h_mask)[:, None, :, None]
    x = along(w_feature, half_w_mask)[None, :, None, :]
    inside = (y >= 0) & (y < h_mask) & (x >= 0) & (x < w_mask)
    where = (y * w_mask + x).where(inside, 0)
    return where.flatten(0, 1), inside.flatten(0, 1)
