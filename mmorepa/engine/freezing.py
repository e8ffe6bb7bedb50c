"""Stages that are frozen for the first part of a training."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from .squeezed_step import squeezed_blocks, unwrap


@HOOKS.register_module()
class FreezeStagesHook(Hook):
    """Freezes the first stages of the backbone until some epoch or iteration, then trains all.

    A config with ``frozen_stages`` cannot do that: MMEngine leaves what is frozen out of the
    optimizer for good. So leave it at -1 there, and the hook freezes. In DDP this wants
    ``find_unused_parameters=True``.

    Args:
        stages (int): As ``frozen_stages`` of the backbone.
        end (int): The epoch or iteration, counted from 0, that trains all again.
        by_epoch (bool): Whether ``end`` is an epoch. Defaults to True.

    Raises:
        UserError: If the backbone has no stages to freeze, or the config has frozen some already.
    """

    priority = 'VERY_HIGH'

    def __init__(self, stages: int, end: int, by_epoch: bool = True):
        self.stages = stages
        self.end = end
        self.by_epoch = by_epoch

    def before_train(self, runner: Runner) -> None:
        backbone = _backbone(runner)
        if not hasattr(backbone, '_freeze_stages'):
            raise UserError(
                f'FreezeStagesHook: {type(backbone).__name__} has no frozen_stages; '
                'use it with a backbone that has'
            )
        if backbone.frozen_stages >= 0:
            raise UserError(
                f'FreezeStagesHook: frozen_stages={backbone.frozen_stages} in the config keeps '
                'parameters out of the optimizer; set it to -1'
            )
        self._frozen = False

    def before_train_epoch(self, runner: Runner) -> None:
        self._update(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if not self.by_epoch:
            self._update(runner)

    def _update(self, runner: Runner) -> None:
        freeze = (runner.epoch if self.by_epoch else runner.iter) < self.end
        if freeze == self._frozen:
            return
        backbone = _backbone(runner)
        backbone.frozen_stages = self.stages if freeze else -1
        backbone.requires_grad_(True)
        for block in squeezed_blocks(backbone):
            block.kernel.requires_grad_(False)
        # Sets the stages and their BatchNorms' modes.
        backbone._freeze_stages()
        backbone.train()
        self._frozen = freeze


def _backbone(runner: Runner):
    model = unwrap(runner.model)
    return getattr(model, 'backbone', model)
