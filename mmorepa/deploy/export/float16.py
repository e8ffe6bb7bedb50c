"""Whether a network fits into float16.

Folding a BatchNorm multiplies a kernel by ``gamma / sqrt(var + eps)``. A large factor can take
weights or feature maps past what float16 can hold, and a small one below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

#: The largest number, 65504.
LARGEST = torch.finfo(torch.float16).max
#: The smallest positive number, a subnormal, 6.0e-8. What is below half of it becomes zero.
SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
#: The share of a layer's weights that may vanish unmentioned. About two in a million weights with a
#: standard deviation of 0.01 vanish.
VANISHING = 1e-4
#: Largest relative difference to float32 that passes. Each rounding is one of up to 4.9e-4, and a
#: deep network adds some tens of them.
TOLERANCE = 1e-2


def vanishing_weights(model: nn.Module) -> list[str]:
    """One line for each layer in which more than :data:`VANISHING` of the weights become zero.

    Args:
        model (nn.Module): A model in deploy form and float32.
    """
    lines = []
    for name, parameter in model.named_parameters():
        lost = ((parameter != 0) & (parameter.half() == 0)).double().mean().item()
        if lost > VANISHING:
            lines.append(
                f'{name}: {lost:.2%} of it is below {SMALLEST:.0e} and becomes zero in float16; '
                'harmless if the comparison below holds, else export this model in float32'
            )
    return lines


def out_of_range(model: nn.Module, images: Iterable[Tensor]) -> list[str]:
    """One line for each layer whose weights or outputs float16 cannot hold.

    Args:
        model (nn.Module): A model in deploy form and float32, from an image to tensors.
        images (Iterable[Tensor]): Inputs, (N, 3, H, W). What no image reaches is not found.
    """
    lines = []
    for name, parameter in model.named_parameters():
        lines += _beyond(name, 'it reaches', parameter)
    for name, reached in largest_outputs(model, images).items():
        lines += _beyond(name, 'its outputs reach', reached)
    return lines


@torch.no_grad()
def largest_outputs(model: nn.Module, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """The largest magnitude in the outputs of each module without children, by its name.

    Args:
        model (nn.Module): See :func:`out_of_range`.
        images (Iterable[Tensor]): See :func:`out_of_range`.
    """
    reached: dict[str, Tensor] = {}

    def note(name):
        def hook(module, args, output):
            for tensor in tree_leaves(output):
                # In place, as most ReLUs are, the tensor changes later.
                largest = tensor.detach().abs().max()
                reached[name] = torch.maximum(reached.get(name, largest), largest)

        return hook

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if not list(module.children()) and not isinstance(module, nn.Identity)
    ]
    try:
        for image in images:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return reached


def _beyond(name: str, what: str, tensor: Tensor) -> Iterator[str]:
    largest = tensor.abs().max().item()
    # Also NaN.
    if not largest <= LARGEST:
        yield (
            f'{name}: {what} {largest:.3g}, float16 ends at {LARGEST:.0f}; train on with more '
            'weight decay, or export this model in float32'
        )
