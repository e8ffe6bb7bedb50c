"""Evaluating a training form at the price of its deploy form.

Evaluation asks for the same network again and again. Its kernels are then kept, but its BatchNorms
still run, and a block with BatchNorms inside runs every branch. So the deploy form is kept instead,
until something changes.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..convs import ReparamConv2d, switch_to_deploy
from ..convs.kept import Snapshot

#: Calls without a change between them after which a deploy form pays.
CALLS = 3


class KeptDeployForm:
    """At most one deploy form, with a snapshot of the model it was made of.

    For what that tells, see :class:`mmorepa.convs.kept.Note`; a write through ``.data`` wants
    :meth:`drop`.
    """

    def __init__(self):
        self.drop()

    def drop(self) -> None:
        """Forget the deploy form."""
        self._form: nn.Module | None = None
        self._calls = 0
        self._snapshot: Snapshot | None = None

    def get(self, model: nn.Module) -> nn.Module | None:
        """The deploy form of ``model``, if it may run in its place here and now, else None.

        It may where no gradient is wanted, every module is in eval mode, nobody has hooked into a
        module, and the model has been called :data:`CALLS` times as it is. A model without blocks
        has no other form.
        """
        if (
            model.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
        ):
            return None
        if self._snapshot is None or not self._snapshot.holds():
            self._note(model)
        if self._snapshot is None or any(
            module.training or module._forward_hooks or module._forward_pre_hooks
            for _, _, module in self._snapshot.modules
        ):
            return None
        self._calls += 1
        if self._form is None and self._calls > CALLS:
            # Not inference tensors, which nothing could be done with afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self._form = switch_to_deploy(model, inplace=False)
        return self._form

    def _note(self, model: nn.Module) -> None:
        self.drop()
        # Without a snapshot nothing is kept.
        self._snapshot = Snapshot.of(model)
        if not any(isinstance(module, ReparamConv2d) for module in model.modules()):
            self._calls = -math.inf

    def __deepcopy__(self, memo: dict) -> KeptDeployForm:
        return KeptDeployForm()

    def __reduce__(self):
        return KeptDeployForm, ()
