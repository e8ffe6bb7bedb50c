"""Logging what becomes of branches and kernels during training."""

from __future__ import annotations

import logging
import math

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..convs.blocks.branch_kernels import BranchGram, branch_sums, gram_matrix, named_blocks
from ..errors import UserError
from .squeezed_step import consolidate, unwrap


@HOOKS.register_module()
class KernelLoggerHook(Hook):
    """Logs how alike the branches of blocks are, and how large their kernels.

    Every ``interval`` iterations the visualizer of the runner gets, for each group of layers
    (``conv1``, ``layer1`` and so on in a ResNet, ``stage_1`` in a RepVGG):

    - ``branch_similarity/layer1``: the mean cosine of all pairs of branches of a block, in the mean
      over the group; the lower, the more diverse the branches. Left out where no pair has a cosine.
    - ``kernel_norm/layer1``: the Frobenius norm of the kernels of the group together.

    So they are in ``vis_data/scalars.json``, and in TensorBoard and whatever else ``vis_backends``
    names. The parameters that are trained are looked at, not their moving average. The first
    process does all of it, after branches that are shared out have been brought together.

    Example::

        custom_hooks = [dict(type='KernelLoggerHook', interval=100)]
        visualizer = dict(
            vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])

    Args:
        interval (int): Iterations from one time to the next, at least 1. Defaults to 100.

    Raises:
        UserError: For another interval, or if parameters are spread over the processes (FSDP).
    """

    def __init__(self, interval: int = 100):
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise UserError(f'KernelLoggerHook: interval={interval!r}, wanted at least 1')
        self.interval = interval

    def before_train(self, runner) -> None:
        """Say so if there is nothing to log."""
        model = unwrap(runner.model)
        if any(isinstance(m, FullyShardedDataParallel) for m in runner.model.modules()):
            raise UserError(
                'KernelLoggerHook: no process of an FSDP training has whole kernels; '
                'take the hook out of the config'
            )
        if not any(named_blocks(model)):
            print_log(
                f'KernelLoggerHook: {type(model).__name__} has no blocks, nothing will be logged',
                logger='current',
                level=logging.WARNING,
            )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Log, if it is time."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        consolidate(runner)
        if not is_main_process():
            return
        scalars = kernel_scalars(unwrap(runner.model))
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)


@torch.no_grad()
def kernel_scalars(model: nn.Module) -> dict[str, float]:
    """Similarity of branches and norm of kernels of each group of layers.

    Args:
        model (nn.Module): Any module with blocks in training form.

    Returns:
        dict[str, float]: By tag, see :class:`KernelLoggerHook`.
    """
    # All is computed before the first number is asked for: a GPU is waited for once.
    grams = [(s.name, tuple(s.branches), gram_matrix(s.branches)) for s in branch_sums(model)]
    squares = [(name, square_of(block)) for name, block in named_blocks(model)]

    similarities: dict[str, list[float]] = {}
    for name, branches, gram in grams:
        similarity = BranchGram(branches, gram.tolist()).similarity
        if not math.isnan(similarity):
            similarities.setdefault(group_of(name), []).append(similarity)
    norms: dict[str, float] = {}
    for name, square in squares:
        norms[group_of(name)] = norms.get(group_of(name), 0.0) + square.item()
    return {
        **{f'branch_similarity/{g}': sum(found) / len(found) for g, found in similarities.items()},
        **{f'kernel_norm/{group}': math.sqrt(square) for group, square in norms.items()},
    }


def square_of(block: nn.Module) -> Tensor:
    """The squared Frobenius norm of the kernel that a block amounts to."""
    return block.merged()[0].float().square().sum()


def group_of(name: str) -> str:
    """The group of a layer: what comes first in its name, ``backbone`` aside.

    Example:
        >>> group_of('backbone.layer1.0.conv2'), group_of('neck.fpn_convs.0.conv')
        ('layer1', 'neck')
    """
    return name.removeprefix('backbone.').partition('.')[0] or 'model'
