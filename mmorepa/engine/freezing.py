"""Freezing stages for the first part of a training."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from .squeezed_step import unwrap


@HOOKS.register_module()
class FreezeStagesHook(Hook):
    """Freezes the first stages of the backbone until an epoch or iteration, then trains all.

    ``frozen_stages`` in a config cannot do this, because MMEngine leaves frozen parameters out of
    the optimizer for good. Leave ``frozen_stages`` at -1 when you use this hook. DDP needs
    ``find_unused_parameters=True``.

    Args:
        stages (int): Which stages to freeze, with the meaning of the backbone's ``frozen_stages``.
        end (int): The first epoch or iteration, counted from 0, in which all stages train.
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
        # By the config, such as norm_cfg, or by hand; and the branches of squeezed blocks.
        self._frozen_before = [p for p in backbone.parameters() if not p.requires_grad]

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
        for parameter in self._frozen_before:
            parameter.requires_grad_(False)
        # Freezes the parameters and sets the modes of the BatchNorms.
        backbone._freeze_stages()
        backbone.train()
        self._frozen = freeze


def _backbone(runner: Runner):
    model = unwrap(runner.model)
    return getattr(model, 'backbone', model)
