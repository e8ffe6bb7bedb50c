"""What a training step keeps in memory, in bytes.

What autograd saves for the backward pass is counted as it is saved, so the numbers are exact and
the same on every machine. What is needed only for a moment, such as the workspace of a convolution,
is in the peak of a GPU's allocator alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .generation import watched
from .steps import OPTIMIZER, TrainStep


def measure(step: TrainStep) -> dict[str, int]:
    """Bytes by what they hold.

    Args:
        step (TrainStep): Runs twice.

    Returns:
        dict[str, int]: ``parameters``; ``buffers``; ``gradients`` after the backward pass;
        ``optimizer``, its state; ``activations`` and ``kernels``, what autograd has saved at the
        end of the forward pass, see :class:`Saved`; on a GPU also ``peak``, the most that its
        allocator has given out in a step, what belongs to other networks subtracted.
    """
    step()  # after which the optimizer has its state
    network = step.network
    found = dict(
        parameters=storage_bytes(network.parameters()), buffers=storage_bytes(network.buffers())
    )
    outside = [step.x, *network.parameters(), *network.buffers()]
    with Saved(network, outside) as saved:
        step.forward()
        found.update(activations=saved.activations, kernels=saved.kernels)
    step.loss = None

    own = found['parameters'] + found['buffers'] + optimizer_bytes(step.optimizer)
    if step.clock.is_cuda:
        step.clock.wait()
        torch.cuda.reset_peak_memory_stats(step.clock.device)
        others = torch.cuda.memory_allocated(step.clock.device) - own
    step.forward()
    step.backward()
    for name, work in step.update:
        if name == OPTIMIZER:
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            found['gradients'] = storage_bytes(gradients)
        work()
    if step.clock.is_cuda:
        step.clock.wait()
        found['peak'] = torch.cuda.max_memory_allocated(step.clock.device) - others
    found['optimizer'] = optimizer_bytes(step.optimizer)
    return found


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take up, memory that several share counted once."""
    storages = {
        storage._cdata: storage.nbytes() for storage in map(Tensor.untyped_storage, tensors)
    }
    return sum(storages.values())


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The state of an optimizer."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return storage_bytes(value for value in values if isinstance(value, Tensor))


class Saved:
    """A context that counts what autograd saves for the backward pass and still holds.

    Memory that several saved tensors share is counted once. What is saved while a kernel is being
    generated, and the kernel itself, count as kernels, all else as activations. Under autocast
    that includes copies of weights in half precision, plain weights' and generated ones' alike.

    Args:
        network (nn.Module): Whose kernels are told apart.
        outside (Iterable[Tensor]): What is there anyway, and not counted.
    """

    def __init__(self, network: nn.Module, outside: Iterable[Tensor]):
        self.network = network
        self.outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self.sizes: dict[StorageWeakRef, int] = {}
        self.of_kernels: set[StorageWeakRef] = set()
        self.is_generating = False

    def __enter__(self) -> Saved:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved)
        self.watch = watched(self.network, self._begin, self._end)
        self.watch.__enter__()
        self.hooks.__enter__()
        return self

    def __exit__(self, *args) -> None:
        self.hooks.__exit__(*args)
        self.watch.__exit__(*args)

    def _begin(self) -> None:
        self.is_generating = True

    def _end(self, kernel: Tensor) -> None:
        self.is_generating = False
        self.of_kernels.add(StorageWeakRef(kernel.untyped_storage()))

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.outside:
            reference = StorageWeakRef(storage)
            self.sizes[reference] = storage.nbytes()
            if self.is_generating:
                self.of_kernels.add(reference)
        # Not the tensor itself: saved by the operation that it comes from, it would never be freed.
        return tensor.detach()

    @property
    def kernels(self) -> int:
        """Bytes of kernels, and of what generating them has saved."""
        return sum(size for ref, size in self._held() if ref in self.of_kernels)

    @property
    def activations(self) -> int:
        """Bytes of all else."""
        return sum(size for ref, size in self._held() if ref not in self.of_kernels)

    def _held(self) -> list[tuple[StorageWeakRef, int]]:
        return [(ref, size) for ref, size in self.sizes.items() if not ref.expired()]
