"""Squeezed training in MMEngine: an optimizer wrapper's step, and sharing the blocks out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from ..convs import SqueezedTraining
from ..convs.generated import GeneratedConv2d
from ..errors import UserError


class SqueezedStepMixin:
    """Gives a class of optimizer wrappers the step of squeezed training.

    The mixin goes before that class in the bases. Gradients are pulled back before they are
    unscaled and clipped. Kernels are generated after the optimizer's step, even if AMP skipped it.

    Attributes:
        training (SqueezedTraining): Pulls the gradients back and generates the kernels.
    """

    training: SqueezedTraining

    def step(self, **kwargs) -> None:
        """Pull gradients back, do the wrapper's own step, generate the kernels."""
        self.training.pull_back()
        if self.training.shard and isinstance(self, AmpOptimWrapper) and not self.clip_grad_kwargs:
            # A fused optimizer would look for an overflow in this process alone.
            self.loss_scaler.unscale_(self.optimizer)
        super().step(**kwargs)
        self.training.generate()

    def zero_grad(self, **kwargs) -> None:
        """Drop all gradients, also those of the kernels."""
        self.training.zero_grad(**kwargs)

    def _clip_grad(self) -> None:
        # MMEngine's method leaves out parameters that do not require grad, such as the branches.
        if self.clip_func is nn.utils.clip_grad_norm_:
            norm = self.training.clip_grad_norm_(**self.clip_grad_kwargs)
        else:
            parameters = [p for group in self.param_groups for p in group['params']]
            parameters = [p for p in parameters if p.grad is not None]
            norm = self.clip_func(parameters, **self.clip_grad_kwargs)
        if norm is not None:
            self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))

    def shard(self) -> None:
        """Share the blocks out among the processes, see :class:`mmorepa.SqueezedTraining`."""
        self.training.shard = True
        if isinstance(self, AmpOptimWrapper):
            # All processes must agree on whether the step is skipped.
            before = self.loss_scaler
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
            self.loss_scaler = ShardedGradScaler(device, enabled=before.is_enabled())
            self.loss_scaler.load_state_dict(before.state_dict())


def squeezed_blocks(model: nn.Module) -> list[GeneratedConv2d]:
    """The blocks of a model in mode ``'squeezed'``."""
    blocks = [module for module in model.modules() if isinstance(module, GeneratedConv2d)]
    return [block for block in blocks if block.mode == 'squeezed']


@contextlib.contextmanager
def trained_through_branches(model: nn.Module) -> Iterator[None]:
    """A context in which the branches of squeezed blocks require grad and their kernels do not.

    In it, rules for parameters treat the blocks as in online mode.
    """
    blocks = {block: block.weight.requires_grad for block in squeezed_blocks(model)}
    for block, trained in blocks.items():
        block.kernel.requires_grad_(trained)
        block.weight.requires_grad_(False)
    try:
        yield
    finally:
        for block, trained in blocks.items():
            block.kernel.requires_grad_(False)
            block.weight.requires_grad_(trained)


def squeeze_step(wrapper: OptimWrapper, model: nn.Module) -> OptimWrapper:
    """Make an optimizer wrapper able to train a model whose blocks are in mode ``'squeezed'``.

    Args:
        wrapper (OptimWrapper): A wrapper of any class. Its class is replaced by a subclass.
        model (nn.Module): The Runner's model, wrapped or not.

    Returns:
        OptimWrapper: The same object.

    Raises:
        UserError: If FSDP has sharded the parameters.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise UserError(
            "mode='squeezed' does not go with FSDP, which spreads parameters over the processes: "
            "use mode='online'"
        )
    kind = type(wrapper)
    wrapper.__class__ = type(f'Squeezed{kind.__name__}', (SqueezedStepMixin, kind), {})
    wrapper.training = SqueezedTraining(model, wrapper.optimizer, shard=False)
    return wrapper


@HOOKS.register_module()
class SqueezedTrainingHook(Hook):
    """Shares the blocks out among the processes, and brings their branches together again.

    With blocks shared out, each process updates the branches of its own blocks only. The hook does
    nothing in a single process, or if no block is in mode ``'squeezed'``. Without the hook every
    process updates all branches: the result is the same, but a step takes longer. Every process
    does so too where something reads all branches in every step, see :func:`reader_of_all`; the
    log then names it.

    The branches of all blocks, and those of a moving average, are brought up to date in all
    processes before a checkpoint is written, before each validation and after training. The
    checkpoint is the same as without sharing out.

    Args:
        shard (bool): False makes every process update all branches. Defaults to True.
    """

    # After the moving average is updated, before the checkpoint is written.
    priority = 'BELOW_NORMAL'

    def __init__(self, shard: bool = True):
        self.shard = shard

    def before_train(self, runner) -> None:
        """Share the blocks out."""
        training = training_of(runner)
        if not self.shard or training is None or get_world_size() == 1:
            return
        if reader := reader_of_all(runner):
            runner.logger.info(
                f'squeezed training: {reader} reads the branches of all blocks in every step, so '
                'that every process steps all of them'
            )
            return
        runner.optim_wrapper.shard()
        own, total = len(training.own_blocks), len(training.blocks)
        runner.logger.info(f'squeezed training: this process steps {own} of {total} blocks')

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Bring branches together if a checkpoint is about to be written."""
        if any(saves_now(hook, self, runner) for hook in runner.hooks):
            consolidate(runner)

    def after_train_epoch(self, runner) -> None:
        """Bring branches together."""
        consolidate(runner)

    def before_val(self, runner) -> None:
        """Bring branches together."""
        consolidate(runner)

    def after_train(self, runner) -> None:
        """Bring branches together."""
        consolidate(runner)


def training_of(runner) -> SqueezedTraining | None:
    """The :class:`SqueezedTraining` of a Runner, or None."""
    return getattr(getattr(runner, 'optim_wrapper', None), 'training', None)


def reader_of_all(runner) -> str:
    """What reads the branches of all blocks after every step; empty if nothing does.

    These are a moving average that begins later or that averages buffers, which reads whole state
    dicts, and a follower inside the model, such as a teacher or a key encoder.
    """
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            begins_later = hook.begin_iter > 0 or hook.begin_epoch > 0
            if begins_later or hook.ema_model.update_buffers:
                return type(hook).__name__
        if type(hook).__name__ == 'MeanTeacherHook':  # mmdet's, which need not be there
            return type(hook).__name__
    for name, module in runner.model.named_modules():
        if isinstance(module, BaseAveragedModel):
            return name
    return ''


def consolidate(runner) -> None:
    """Bring the branches of a Runner's model and of its moving averages up to date.

    All processes must call this. If nothing is shared out, it does nothing.
    """
    training = training_of(runner)
    if training is not None:
        averages = [getattr(hook, 'ema_model', None) for hook in runner.hooks]
        training.consolidate(*(average.module for average in averages if average is not None))


def saves_now(hook: Hook, own: Hook, runner) -> bool:
    """Whether ``hook`` writes a checkpoint after this iteration; ``own`` is the calling hook."""
    return (
        isinstance(hook, CheckpointHook)
        and not hook.by_epoch
        and (
            own.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and own.is_last_train_iter(runner))
        )
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model
