"""Comparing two forms of a whole model on one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..convs import Agreement, verify


def probe_image(size: int, channels: int = 3) -> Tensor:
    """The same random normalised image each time, (1, channels, size, size)."""
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))


def compare_forms(before: nn.Module, after: nn.Module, image: Tensor) -> Agreement:
    """Compare the raw outputs of two forms of an OpenMMLab model.

    A two-stage detector picks proposals by rank, where the last digit can change the choice. So its
    parts are compared one by one, each of the second model on the input that it has in the first.

    Args:
        before (nn.Module): Classifier, detector or segmentor, one form of it.
        after (nn.Module): Another form.
        image (Tensor): (N, 3, H, W), normalised.

    Returns:
        Agreement: Over all outputs; of several parts the worst.
    """
    if not hasattr(before, 'roi_head'):
        return verify(before, after, image, mode='tensor')
    return Agreement.worst(
        [
            verify(part, after.get_submodule(name), *args, **kwargs)
            for name, part, args, kwargs in _parts(before, image)
        ]
    )


@torch.no_grad()
def _parts(detector: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, tuple, dict]]:
    """The outermost modules that a prediction calls, with the input of their first call."""
    from mmdet.structures import DetDataSample

    calls = {}

    def note(module, args, kwargs):
        calls.setdefault(module, (args, kwargs))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in detector.modules()
        if module is not detector
    ]
    size = tuple(image.shape[2:])
    sample = DetDataSample(
        metainfo=dict(
            img_shape=size,
            ori_shape=size,
            pad_shape=size,
            batch_input_shape=size,
            scale_factor=(1.0, 1.0),
        )
    )
    try:
        detector.eval()(image, [sample for _ in image], mode='predict')
    finally:
        for hook in hooks:
            hook.remove()

    def outermost(prefix, module):
        for name, child in module.named_children():
            if child in calls:
                yield f'{prefix}{name}', child, *calls[child]
            else:
                yield from outermost(f'{prefix}{name}.', child)

    return list(outermost('', detector))
