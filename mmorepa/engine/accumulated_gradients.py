"""Gradients that are being accumulated when a checkpoint is written; MMEngine loses them."""

from __future__ import annotations

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .squeezed_step import unwrap

#: Their key in a checkpoint.
KEY = 'accumulated_gradients'


@HOOKS.register_module()
class AccumulatedGradientsHook(Hook):
    """Saves gradients in a checkpoint where an accumulation is not finished, and restores them.

    In several processes each has gradients of its own and one writes the checkpoint: there none
    are saved, and the accumulation begins again.
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
        # Only where the optimizer goes on too: a mere load_from begins anew.
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
