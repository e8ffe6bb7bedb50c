"""The weight that a re-parameterised convolution has handed out, and whether it still holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .constants import ConstantsMixin


class Note(NamedTuple):
    """What a tensor was: the object, its storage and its version, autograd's count of writes.

    That tells of in-place operations, ``load_state_dict``, optimizer steps, a new ``.data``,
    swapped or copied modules. A write *through* ``.data`` or NumPy leaves no trace, and a fused
    optimizer's step neither.

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
    """Notes of all tensors and modules in a module, constants left out.

    They are looked up where they were found: walking a module again takes several times as long.

    Args:
        module (nn.Module): See above.
    """

    def __init__(self, module: nn.Module):
        modules = list(module.modules())
        children = [module._modules for module in modules]
        tensors = [module._parameters for module in modules]
        # Constants do not change, though DDP writes to them: it broadcasts buffers in every pass.
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
        """A snapshot of ``module`` as it is; None if nothing could be told by one.

        So it is for tensors made under ``inference_mode``, which count no writes, for fake ones,
        and where a wrapper such as FSDP has taken the parameters away.
        """
        tensors = [*module.parameters(), *module.buffers()]
        if not any(True for _ in module.parameters()) or any(t.is_inference() for t in tensors):
            return None
        try:
            return cls(module)
        except RuntimeError:  # of a tensor without memory
            return None

    def renew(self) -> bool:
        """Take the values as they are for unchanged; False if more than values has changed."""
        for i, (own, name, note) in enumerate(self._tensors):
            tensor = own.get(name)
            if tensor is not note.tensor or tensor.data_ptr() != note.address:
                return False
            self._tensors[i] = own, name, note._replace(version=tensor._version)
        return self.holds()

    def holds(self) -> bool:
        """Whether the module is unchanged."""
        # Loops, not generators: this runs in every forward pass, once a block.
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
    """The weight that a block handed out last, and what it was made of.

    It belongs to one object: copies of a block begin without.

    Attributes:
        tensor (Tensor, optional): The weight.
        memory_format (torch.memory_format, optional): The one that it was asked for in. It is
            here, where no copy has it, because ``torch.save`` cannot pickle it.
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
            tensor (Tensor): The weight as it is.
            source (Snapshot, optional): Of the module that it was made of. None if it is not to
                be used again.
            memory_format (torch.memory_format, optional): See the class.
        """
        self.tensor, self._source, self.memory_format = tensor, source, memory_format
        self._note = None if tensor.is_inference() else _note(tensor)

    def renew(self, tensor: Tensor) -> bool:
        """As :meth:`hold`, of the same module; False if that has changed in more than values."""
        if self._source is None or tensor is not self.tensor or not self._source.renew():
            return False
        self._note = _note(tensor)
        return True

    def outdate(self) -> None:
        """Let the weight pass for out of date."""
        self._source = None

    @property
    def is_fresh(self) -> bool:
        """Whether the weight is what its module gives, as far as can be told."""
        return self._source is not None and self._source.holds()

    @property
    def is_replaced(self) -> bool:
        """Whether somebody has given the weight other data, ``weight.data = ...``."""
        return self._note is not None and self.tensor.data_ptr() != self._note.address

    @property
    def is_written(self) -> bool:
        """Whether somebody has written to the weight in place, or replaced its data."""
        return self._note is not None and not self._note.holds(self.tensor)

    def __deepcopy__(self, memo: dict) -> HeldWeight:
        return HeldWeight()

    def __reduce__(self):
        return HeldWeight, ()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has values: it is neither a meta tensor nor a fake one."""
    return not tensor.is_meta and _note(tensor) is not None


def _note(tensor: Tensor) -> Note | None:
    try:
        return Note.of(tensor)
    except RuntimeError:  # of a tensor without memory
        return None
