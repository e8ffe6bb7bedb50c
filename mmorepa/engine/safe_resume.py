"""Resuming with MMEngine's own command, on torch versions that unpickle only plain values."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoints.files import mmengine_loads_weights_only


@HOOKS.register_module()
class SafeResumeHook(Hook):
    """Makes ``resume`` and ``load_from`` read MMEngine's checkpoints as this package's tools do.

    ``mim train ... --resume`` needs this hook on torch 2.6 and newer, which refuse the
    ``HistoryBuffer`` and the NumPy numbers in those files. The hook allows these by name. A file
    that contains code is refused with a ``UserError``, on any torch::

        default_hooks = dict(safe_resume=dict(type='mmorepa.SafeResumeHook'))

    The hook changes this one runner, and MMEngine's loader only while that runner loads. It works
    with MMEngine's ``Runner``. ``FlexibleRunner`` loads before it calls a hook; resume it with
    ``tools/train.py``.
    """

    def before_run(self, runner: Runner) -> None:
        """Replace the runner's ``load_or_resume``, which it calls next, for that one call."""

        def load_or_resume() -> None:
            del runner.load_or_resume
            with mmengine_loads_weights_only():
                runner.load_or_resume()

        runner.load_or_resume = load_or_resume
