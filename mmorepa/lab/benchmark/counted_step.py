"""The operations of a training step, part by part: counted on the meta device, nothing is computed.

What is counted is what a GPU is asked for: the meta device takes every path that is not the CPU's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .memory import storage_bytes
from .operations import SENDING, Operations, count_operations
from .plan import NetworkCase, Setup
from .steps import OPTIMIZER, TrainStep, images


@dataclass(frozen=True)
class CountedStep:
    """A training step of one process in float32.

    Attributes:
        parts (dict[str, Operations]): Those of :class:`mmorepa.lab.benchmark.steps.TrainStep`, in
            order. Making kernels online is within ``'forward'`` and ``'backward'``.
        gradients (int): Bytes of the gradients that the backward pass leaves, which DDP reduces.
    """

    parts: dict[str, Operations]
    gradients: int

    @property
    def without_optimizer(self) -> Operations:
        """All but the optimizer's own step."""
        parts = [part for name, part in self.parts.items() if name != OPTIMIZER]
        return Operations(operation for part in parts for operation in part)


def count_step(
    build: Callable[[], nn.Module], case: NetworkCase, shared_out: bool = False
) -> list[CountedStep]:
    """Count a training step.

    Args:
        build (Callable[[], nn.Module]): Gives the network, in training mode.
        case (NetworkCase): See there; of its setup the memory format alone matters.
        shared_out (bool): Whether the processes of the case share out the update. Defaults to
            False.

    Returns:
        list[CountedStep]: That of each process where they share it out, else one for all.
    """
    if not shared_out:
        return [_count(build(), case, shared_out=False)]
    found = []
    for rank in range(case.processes):
        with imagined_processes(rank, case.processes):
            found.append(_count(build(), case, shared_out=True))
    return found


def _count(network: nn.Module, case: NetworkCase, shared_out: bool) -> CountedStep:
    # The optimizer's implementation is the one that torch chooses on a GPU.
    setup = Setup('meta', channels_last=case.setup.channels_last, optimizer='foreach')
    x = images(case.batch, case.size, setup)
    step = TrainStep(network, x, setup, case.accumulate, shared_out)
    for _, work in step.parts:
        work()  # after which the optimizer has its state
    parts: dict[str, Operations] = {}
    gradients = 0
    for name, work in step.parts:
        parts.setdefault(name, Operations()).extend(count_operations(work))
        if name == 'backward':
            grads = (p.grad for p in step.network.parameters())
            gradients = storage_bytes(grad for grad in grads if grad is not None)
    return CountedStep(parts, gradients)


@contextlib.contextmanager
def imagined_processes(rank: int, count: int) -> Iterator[None]:
    """Be one of several processes that are not there: what is sent arrives nowhere.

    Tensors on the meta device can be sent as well.

    Args:
        rank (int): Which one.
        count (int): How many.
    """
    # Made for torch's own tests, and part of its releases.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group('fake', store=FakeStore(), rank=rank, world_size=count)
    try:
        with _SendingNothing():
            yield
    finally:
        dist.destroy_process_group()


class _SendingNothing(TorchDispatchMode):
    """Hands collectives empty tensors for those on the meta device, which they do not know."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == SENDING:
            args = tree_map(lambda leaf: torch.empty(0) if _is_meta(leaf) else leaf, args)
        return func(*args, **(kwargs or {}))


def _is_meta(leaf) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_meta
