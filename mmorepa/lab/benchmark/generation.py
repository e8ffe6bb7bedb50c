"""Finds what generates the kernels of a network, here and in the released code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ...convs.generated import GeneratedConv2d


@dataclass(frozen=True)
class Generator:
    """What makes one kernel.

    Attributes:
        module (nn.Module): The block.
        method (str): Which of its methods does it, ``'squeeze'`` here and ``'weight_gen'`` in the
            released code.
    """

    module: nn.Module
    method: str

    def __call__(self) -> Tensor:
        """The kernel, (O, I/g, k, k), with a graph back to the parameters."""
        return getattr(self.module, self.method)()


def generators(network: nn.Module) -> list[Generator]:
    """What makes kernels in every training forward pass of ``network``.

    Blocks whose parameters are all frozen keep their kernels; offline and squeezed ones make none.
    """
    found, inside = [], set()
    for module in network.modules():
        if module in inside or not any(p.requires_grad for p in module.parameters()):
            continue
        if isinstance(module, GeneratedConv2d):
            if module.mode == 'online':
                found.append(Generator(module, 'squeeze'))
        elif callable(getattr(module, 'weight_gen', None)):
            found.append(Generator(module, 'weight_gen'))
        else:
            continue
        # The released stem is made of blocks that make kernels themselves.
        inside.update(module.modules())
    return found


def is_squeezed(network: nn.Module) -> bool:
    """Whether a block of ``network`` is for squeezed training."""
    blocks = (module for module in network.modules() if isinstance(module, GeneratedConv2d))
    return any(block.mode == 'squeezed' for block in blocks)


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

    for generator in generators(network):
        module, method = generator.module, generator.method
        if isinstance(module, GeneratedConv2d):
            method = '_kernel_in'  # which squeezes, and puts in order
        setattr(module, method, partial(make, getattr(module, method)))
        replaced.append((module, method))
    try:
        yield
    finally:
        for module, method in replaced:
            delattr(module, method)
