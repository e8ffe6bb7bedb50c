"""Finds what generates the kernels of a network, here and in the released code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from ...convs.generated import GeneratedConv2d


def generators(network: nn.Module) -> list[Callable[[], Tensor]]:
    """What makes kernels in every training forward pass of ``network``.

    Blocks whose parameters are all frozen are left out; offline and squeezed ones make none.

    Returns:
        list[Callable[[], Tensor]]: Of each block the method that gives the kernel, (O, I/g, k, k),
        with a graph back to the parameters.
    """
    found, inside = [], set()
    for module in network.modules():
        if module in inside or not any(p.requires_grad for p in module.parameters()):
            continue
        if isinstance(module, GeneratedConv2d):
            if module.mode == 'online':
                found.append(module.squeeze)
        elif callable(getattr(module, 'weight_gen', None)):
            found.append(module.weight_gen)
        else:
            continue
        # The released stem is made of blocks that make kernels themselves.
        inside.update(module.modules())
    return found


@contextlib.contextmanager
def watched(
    network: nn.Module, begin: Callable[[], None], end: Callable[[Tensor], None]
) -> Iterator[None]:
    """Be told of the kernels of ``network``.

    Args:
        network (nn.Module): See there.
        begin (Callable[[], None]): Called before a kernel is made.
        end (Callable[[Tensor], None]): Called with the kernel when it is made, in the memory
            format in which it is convolved with.
    """
    replaced = []

    def make(original, *args):
        begin()
        kernel = original(*args)
        end(kernel)
        return kernel

    for generate in generators(network):
        module, method = generate.__self__, generate.__name__
        if isinstance(module, GeneratedConv2d):
            method = '_kernel_in'  # which squeezes, and puts in order
        setattr(module, method, partial(make, getattr(module, method)))
        replaced.append((module, method))
    try:
        yield
    finally:
        for module, method in replaced:
            delattr(module, method)
