"""The convolution over the feature map, with a workaround for a fault of oneDNN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

#: From this number of input channels per group on, oneDNN does not use the workspace it overruns.
ENOUGH_CHANNELS = 16


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """``torch.nn.functional.conv2d``, which may apply the stride of a 1x1 kernel as a view.

    On a CPU, the backward pass of a strided 1x1 convolution of less than 16 input channels in
    channels_last writes past its workspace (oneDNN's issue 6035, torch 2.5 to 2.14). For such
    convolutions the stride is applied to the input instead. The result is the same.
    """
    if (
        x.device.type == 'cpu'
        and weight.shape[1] < ENOUGH_CHANNELS
        and weight.shape[2:] == (1, 1)
        and tuple(stride) != (1, 1)
        and tuple(padding) == (0, 0)
    ):
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
