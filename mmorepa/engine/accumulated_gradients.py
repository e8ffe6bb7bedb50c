"""Saving gradients that are being accumulated when a checkpoint is written; MMEngine loses them."""

from __future__ import annotations

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .squeezed_step import unwrap

#: The key of the gradients in a checkpoint.
KEY = 'accumulated_gradients'


@HOOKS.register_module()
class AccumulatedGradientsHook(Hook):
    """Saves the gradients of an unfinished accumulation in a checkpoint, and restores them.

    With several processes nothing is saved and the accumulation begins again, because each process
    has gradients of its own and only one writes the checkpoint.
    """

    def __init__(self):
        self._gradients = {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if get_world_size() > 1 or 'optimizer' not in checkpoint:
            return
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in unwrap(runner.model).named_parameters()
            if parameter.grad is not None
        }
        if gradients:
            checkpoint[KEY] = gradients

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._gradients = checkpoint.get(KEY, {}) if get_world_size() == 1 else {}

    def before_train(self, runner: Runner) -> None:
        # Only when resuming: load_from alone starts a new training.
        if runner.iter and self._gradients:
            parameters = dict(unwrap(runner.model).named_parameters())
            if self._gradients.keys() <= parameters.keys():
                for name, gradient in self._gradients.items():
                    parameters[name].grad = gradient.to(parameters[name])
            else:
                runner.logger.warning(
                    'the checkpoint has accumulated gradients of another mode of the blocks: '
                    'this accumulation begins again'
                )
        self._gradients = {}
