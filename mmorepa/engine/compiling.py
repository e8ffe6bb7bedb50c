"""``compile=True`` in a config whose optimizer has more than one group of parameters."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class EagerOptimizerHook(Hook):
    """Leaves the optimizer's step out of what MMEngine compiles.

    MMEngine compiles the whole ``train_step``. The parameter groups that its constructors make are
    ``ConfigDict`` objects, which torch 2.5 cannot trace. Also, every change of a learning rate
    would compile the step again.
    """

    def before_run(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        wrapper.update_params = torch.compiler.disable(wrapper.update_params)
