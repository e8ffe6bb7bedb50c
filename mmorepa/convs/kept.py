"""Keeping what was made of a module's tensors until the module changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class Note(NamedTuple):
    """What a tensor was: the object, its storage and its version, autograd's count of writes.

    That tells of in-place operations, ``load_state_dict``, optimizer steps, a new ``.data``,
    swapped or copied modules. A write *through* ``.data`` leaves no trace, and one to an inference
    tensor, of which there can be no note, neither.

    Attributes:
        tensor (Tensor): The object.
        alias (Tensor): Keeps its storage alive, so that no new storage can come to lie at the same
            address and pass for the old one.
        address (int): Of the storage.
        version (int): The count.
    """

    tensor: Tensor
    alias: Tensor
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Note:
        """A note of ``tensor`` as it is."""
        return cls(tensor, tensor.detach(), tensor.data_ptr(), tensor._version)

    def holds(self, tensor: Tensor | None) -> bool:
        """Whether ``tensor`` is what the note is of, unchanged."""
        return (
            tensor is self.tensor
            and tensor._version == self.version
            and tensor.data_ptr() == self.address
        )


class Snapshot:
    """Notes of all tensors and modules in a module.

    They are looked up where they were found: walking a module again takes several times as long.

    Attributes:
        modules (list[tuple[dict, str, nn.Module]]): Each module inside, with the dict that held it
            and its name there.
        tensors (list[tuple[dict, str, Note]]): A note of each parameter and buffer, likewise.
    """

    def __init__(self, module: nn.Module):
        modules = list(module.modules())
        children = [module._modules for module in modules]
        tensors = [own for module in modules for own in (module._parameters, module._buffers)]
        self.modules = [(own, name, child) for own in children for name, child in own.items()]
        self.tensors = [
            (own, name, Note.of(tensor))
            for own in tensors
            for name, tensor in own.items()
            if tensor is not None
        ]
        self._sizes = [(own, len(own)) for own in children + tensors]

    @classmethod
    def of(cls, module: nn.Module) -> Snapshot | None:
        """A snapshot of ``module`` as it is; None if it has inference tensors."""
        tensors = [*module.parameters(), *module.buffers()]
        return None if any(tensor.is_inference() for tensor in tensors) else cls(module)

    def holds(self) -> bool:
        """Whether the module is unchanged."""
        # Loops, not generators: this runs in every forward pass, once a frozen block.
        for own, name, note in self.tensors:
            if not note.holds(own.get(name)):
                return False
        for own, name, child in self.modules:
            if own.get(name) is not child:
                return False
        for own, size in self._sizes:
            if len(own) != size:
                return False
        return True

    def is_frozen(self) -> bool:
        """Whether no tensor is trained."""
        for _, _, note in self.tensors:
            if note.tensor.requires_grad:
                return False
        return True


class KeptKernel:
    """At most one kernel, with a snapshot of the module that gave it.

    It is returned again only while that holds. After a write through ``.data`` the owner calls
    :meth:`drop`.
    """

    def __init__(self):
        self.drop()

    def drop(self) -> None:
        """Forget the kernel."""
        self._kernel: Tensor | None = None
        self._format: torch.memory_format | None = None
        self._snapshot: Snapshot | None = None

    def get(self, memory_format: torch.memory_format, frozen: bool = False) -> Tensor | None:
        """The kernel, if one in this format was kept and still is what its module gives.

        Args:
            memory_format (torch.memory_format): Of the kernel.
            frozen (bool): Ask that no tensor of the module is trained, too. Defaults to False.

        Returns:
            Tensor: Without a graph. Not to be written to.
        """
        snapshot = self._snapshot
        if snapshot is None or self._format != memory_format:
            return None
        if frozen and not snapshot.is_frozen():
            return None
        return self._kernel if snapshot.holds() else None

    def keep(self, kernel: Tensor, module: nn.Module, memory_format: torch.memory_format) -> None:
        """Keep ``kernel``, which ``module`` gives; inference tensors can be in neither."""
        self._kernel, self._format, self._snapshot = kernel, memory_format, Snapshot.of(module)

    def __deepcopy__(self, memo: dict) -> KeptKernel:
        return KeptKernel()

    def __reduce__(self):
        return KeptKernel, ()


def _count_fused_writes(optimizer: Optimizer, *_) -> None:
    """Count a fused optimizer's step as a write to its parameters; torch itself does not."""
    for group in optimizer.param_groups:
        if group.get('fused'):
            for parameter in group['params']:
                torch.autograd.graph.increment_version(parameter)


register_optimizer_step_post_hook(_count_fused_writes)
