"""Resuming by MMEngine's own command, whatever torch unpickles by default."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoints.files import mmengine_loads_weights_only


@HOOKS.register_module()
class SafeResumeHook(Hook):
    """Has ``resume`` and ``load_from`` read MMEngine's checkpoints as this package's tools do.

    ``mim train ... --resume`` needs it on torch 2.6 and newer, which refuse the ``HistoryBuffer``
    and the NumPy numbers in those files. These are allowed by name; a file that holds code is
    refused, on any torch, with a ``UserError``::

        custom_hooks = [dict(type='mmorepa.SafeResumeHook')]

    The hook changes the one runner, and MMEngine's loader only while that runner loads. It works
    in MMEngine's ``Runner``; ``FlexibleRunner`` loads before it calls a hook, and resumes by
    ``tools/train.py``.
    """

    def before_run(self, runner: Runner) -> None:
        """Replace the runner's ``load_or_resume``, which it calls next, for that call."""

        def load_or_resume() -> None:
            del runner.load_or_resume
            with mmengine_loads_weights_only():
                runner.load_or_resume()

        runner.load_or_resume = load_or_resume
