"""Comparing two forms of a whole model, or their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..convs import Agreement, ReparamConv2d, verify


def probe_image(size: int, channels: int = 3) -> Tensor:
    """The same random normalised image each time, (1, channels, size, size)."""
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))


def input_channels(model: nn.Module) -> int:
    """How many channels the images of a model have.

    It is the length of its preprocessor's mean, or else what its first convolution takes. If that
    is a multiple of three, images have three: YOLOX's stem gathers blocks of pixels.
    """
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None and len(mean) > 1:
        return len(mean)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, ReparamConv2d)):
            return module.in_channels if module.in_channels % 3 else 3
    return 3


def compare_forms(before: nn.Module, after: nn.Module, image: Tensor) -> Agreement:
    """Compare the raw outputs of two forms of an OpenMMLab model.

    A two-stage detector picks proposals by rank, and SOLO points, where the last digit can change
    the choice. Their parts are therefore compared one by one: each part of the second model runs on
    the input that it has in the first. So are those of a model whose raw outputs cannot be had from
    images alone, such as DETR or Mask2Former.

    Args:
        before (nn.Module): One form of a classifier, detector or segmentor.
        after (nn.Module): Another form of it.
        image (Tensor): (N, C, H, W), normalised.

    Returns:
        Agreement: The agreement over all outputs; if there are several parts, the worst.
    """
    if not any(getattr(before, head, None) for head in ('roi_head', 'mask_head')):
        # What a model says that misses its data samples.
        with contextlib.suppress(AssertionError, AttributeError, LookupError, TypeError):
            return verify(before, after, image, mode='tensor')
    size = tuple(image.shape[2:])
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    metainfo = dict(**sizes, scale_factor=(1.0, 1.0))
    samples = [BaseDataElement(metainfo=metainfo) for _ in image]
    return verify(before, after, image, samples, mode='predict')


def compare_outputs(first: Sequence[Tensor], second: Sequence[Tensor]) -> Agreement:
    """The worst agreement of any output. Each output is measured by its own largest magnitude.

    A detector's scores are many times as large as its box offsets, which would be lost in a common
    measure.

    Args:
        first (Sequence[Tensor]): The outputs that count as right.
        second (Sequence[Tensor]): Others, in the same order.

    Raises:
        ValueError: If they differ in number or shape.
    """
    if len(first) != len(second):
        raise ValueError(f'{len(first)} and {len(second)} outputs do not compare')
    return Agreement.worst([Agreement.of([a], [b]) for a, b in zip(first, second)])
