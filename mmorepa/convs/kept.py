"""Keeping a generated kernel until one of the parameters it came from changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class KeptKernel:
    """At most one kernel, with a note of the parameters it was made of.

    It is returned again only while each parameter is the same object, holds the same storage and
    has the same version, autograd's count of in-place writes. That covers in-place operations,
    ``load_state_dict``, optimizer steps, a new ``.data``, swapped or copied modules. A write
    *through* ``.data`` leaves no trace; for those the owner calls :meth:`drop`.
    """

    def __init__(self):
        self.drop()

    def drop(self) -> None:
        """Forget the kernel."""
        self._kernel: Tensor | None = None
        self._format: torch.memory_format | None = None
        # An alias of each parameter keeps its storage alive, so that no new storage can come to
        # lie at the same address and pass for the old one.
        self._notes: list[tuple[nn.Parameter, Tensor, int]] = []

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
                self._notes = [(p, p.detach(), p._version) for p in parameters]
        return self._kernel

    def _is_current(self, parameters: Sequence[nn.Parameter]) -> bool:
        return len(parameters) == len(self._notes) and all(
            p is noted and p._version == version and p.data_ptr() == alias.data_ptr()
            for p, (noted, alias, version) in zip(parameters, self._notes)
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
