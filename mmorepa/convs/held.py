"""The weight that a re-parameterised convolution has returned, and whether it is still valid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .constants import ConstantsMixin


class Note(NamedTuple):
    """A record of a tensor's state: the object, its storage and autograd's count of writes.

    It detects in-place operations, ``load_state_dict``, optimizer steps, a new ``.data``, and
    swapped or copied modules. It cannot detect a write *through* ``.data`` or NumPy, nor the step
    of a fused optimizer.

    Attributes:
        tensor (Tensor): The object.
        alias (Tensor): Keeps the storage alive, so that no new storage at the same address can be
            mistaken for it.
        address (int): The address of the storage.
        version (int): Autograd's count of writes.
    """

    tensor: Tensor
    alias: Tensor
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Note:
        """Record the present state of ``tensor``."""
        return cls(tensor, tensor.detach(), tensor.data_ptr(), tensor._version)

    def holds(self, tensor: Tensor | None) -> bool:
        """Whether ``tensor`` is the recorded object and unchanged."""
        return (
            tensor is self.tensor
            and tensor._version == self.version
            and tensor.data_ptr() == self.address
        )


class Snapshot:
    """Records the state of all tensors and modules in a module, except constants.

    The tensors are looked up where they were found, because walking the module again would take
    several times as long.

    Args:
        module (nn.Module): The module to record.
    """

    def __init__(self, module: nn.Module):
        modules = list(module.modules())
        children = [module._modules for module in modules]
        tensors = [module._parameters for module in modules]
        # Constants never change, although DDP writes to them when it broadcasts buffers.
        tensors += [m._buffers for m in modules if not isinstance(m, ConstantsMixin)]
        self._modules = [(own, name, child) for own in children for name, child in own.items()]
        self._tensors = [
            (own, name, Note.of(tensor))
            for own in tensors
            for name, tensor in own.items()
            if tensor is not None
        ]
        self._sizes = [(own, len(own)) for own in children + tensors]

    @classmethod
    def of(cls, module: nn.Module) -> Snapshot | None:
        """A snapshot of ``module``, or None if a snapshot could not detect changes.

        This is so for tensors made under ``inference_mode``, which do not count writes, for fake
        tensors, and if a wrapper such as FSDP has taken the parameters away.
        """
        tensors = [*module.parameters(), *module.buffers()]
        if not any(True for _ in module.parameters()) or any(t.is_inference() for t in tensors):
            return None
        try:
            return cls(module)
        except RuntimeError:  # raised for a tensor without memory
            return None

    def renew(self) -> bool:
        """Record the present values; returns False if something else than values has changed."""
        for i, (own, name, note) in enumerate(self._tensors):
            tensor = own.get(name)
            if tensor is not note.tensor or tensor.data_ptr() != note.address:
                return False
            self._tensors[i] = own, name, note._replace(version=tensor._version)
        return self.holds()

    def holds(self) -> bool:
        """Whether the module is unchanged."""
        # Loops are quicker than generators, and this runs for each block in every forward pass.
        for own, name, note in self._tensors:
            if not note.holds(own.get(name)):
                return False
        for own, name, child in self._modules:
            if own.get(name) is not child:
                return False
        for own, size in self._sizes:
            if len(own) != size:
                return False
        return True


class HeldWeight:
    """The weight that a block returned last, and what it was computed from.

    It belongs to one object: a copy of a block starts without a held weight.

    Attributes:
        tensor (Tensor, optional): The weight.
        memory_format (torch.memory_format, optional): The memory format that was asked for. It is
            stored here, where no copy of a block has it, because ``torch.save`` cannot pickle it.
    """

    def __init__(self):
        self.drop()

    def drop(self) -> None:
        """Forget the weight."""
        self.tensor: Tensor | None = None
        self.memory_format: torch.memory_format | None = None
        self._note: Note | None = None
        self._source: Snapshot | None = None

    def hold(
        self,
        tensor: Tensor,
        source: Snapshot | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        """Remember a weight.

        Args:
            tensor (Tensor): The weight.
            source (Snapshot, optional): A snapshot of the module that the weight was computed
                from. None if the weight must not be used again.
            memory_format (torch.memory_format, optional): The memory format that was asked for.
        """
        self.tensor, self._source, self.memory_format = tensor, source, memory_format
        self._note = None if tensor.is_inference() else _note(tensor)

    def renew(self, tensor: Tensor) -> bool:
        """Like :meth:`hold`, for the same module; returns False if more than its values changed."""
        if self._source is None or tensor is not self.tensor or not self._source.renew():
            return False
        self._note = _note(tensor)
        return True

    def outdate(self) -> None:
        """Mark the weight as out of date."""
        self._source = None

    @property
    def is_fresh(self) -> bool:
        """Whether the weight is what its module gives now, as far as that can be detected."""
        return self._source is not None and self._source.holds()

    @property
    def is_replaced(self) -> bool:
        """Whether the weight was given other data, ``weight.data = ...``."""
        return self._note is not None and self.tensor.data_ptr() != self._note.address

    @property
    def is_written(self) -> bool:
        """Whether the weight was written to in place, or its data was replaced."""
        return self._note is not None and not self._note.holds(self.tensor)

    def __deepcopy__(self, memo: dict) -> HeldWeight:
        return HeldWeight()

    def __reduce__(self):
        return HeldWeight, ()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has values, that is, is neither a meta tensor nor a fake tensor."""
    return not tensor.is_meta and _note(tensor) is not None


def _note(tensor: Tensor) -> Note | None:
    try:
        return Note.of(tensor)
    except RuntimeError:  # of a tensor without memory
        return None
