"""Keeping a generated kernel until one of the parameters it came from changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        version (int): The count.
    """

    tensor: Tensor
    alias: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Note:
        """A note of ``tensor`` as it is."""
        return cls(tensor, tensor.detach(), tensor._version)

    def holds(self, tensor: Tensor | None) -> bool:
        """Whether ``tensor`` is what the note is of, unchanged."""
        return (
            tensor is self.tensor
            and tensor._version == self.version
            and tensor.data_ptr() == self.alias.data_ptr()
        )


class KeptKernel:
    """At most one kernel, with notes of the parameters it was made of.

    It is returned again only while these hold. After a write through ``.data`` the owner calls
    :meth:`drop`.
    """

    def __init__(self):
        self.drop()

    def drop(self) -> None:
        """Forget the kernel."""
        self._kernel: Tensor | None = None
        self._format: torch.memory_format | None = None
        self._notes: list[Note] = []

    def get(
        self,
        parameters: Sequence[nn.Parameter],
        make: Callable[[], Tensor],
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """The kernel that ``make`` gives for ``parameters``, made anew only when they changed.

        Args:
            parameters (Sequence[nn.Parameter]): All that ``make`` reads.
            make (Callable): Gives the kernel.
            memory_format (torch.memory_format): In which ``make`` gives it.

        Returns:
            Tensor: The kernel, without a graph. Not to be written to.
        """
        if any(p.is_inference() for p in parameters):
            return make()
        if self._format != memory_format or not self._is_current(parameters):
            # Not an inference tensor, even if asked for under inference_mode: a later backward
            # pass to the input may need it.
            with torch.inference_mode(False), torch.no_grad():
                self._kernel = make()
                self._format = memory_format
                self._notes = [Note.of(p) for p in parameters]
        return self._kernel

    def _is_current(self, parameters: Sequence[nn.Parameter]) -> bool:
        return len(parameters) == len(self._notes) and all(
            note.holds(p) for note, p in zip(self._notes, parameters)
        )

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
