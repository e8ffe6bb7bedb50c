"""Putting blocks in the place of a network's plain convolutions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def substitute_convs(
    model: nn.Module,
    build: Callable[[nn.Conv2d], nn.Module],
    where: Callable[[str], bool],
) -> int:
    """Replace plain convolutions of ``model``, in place.

    Only exact ``nn.Conv2d`` are replaced: deformable, weight-standardised and other convolutions
    stay what the library made them.

    Args:
        model (nn.Module): Any module.
        build (Callable): Gives the block for a convolution.
        where (Callable): Told a convolution's dotted name, says whether to replace it.

    Returns:
        int: How many were replaced.
    """
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and where(name)
    ]
    for name, conv in chosen:
        parent, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(parent), attribute, build(conv))
    return len(chosen)
