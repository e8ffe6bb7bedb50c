"""Logging how branches and kernels change during training."""

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
    """Logs how alike the branches of blocks are, and how large their kernels are.

    Every ``interval`` iterations the runner's visualizer gets two scalars for each group of layers
    (``conv1``, ``layer1`` and so on in a ResNet, ``stage_1`` in a RepVGG):

    - ``branch_similarity/layer1``: the mean cosine of all pairs of branches of a block, averaged
      over the group. The lower it is, the more diverse are the branches. It is left out where no
      pair has a cosine.
    - ``kernel_norm/layer1``: the Frobenius norm of all kernels of the group together.

    The scalars go to ``vis_data/scalars.json`` and to the backends in ``vis_backends``, such as
    TensorBoard. They describe the parameters that are trained, not their moving average. The first
    process computes them, after branches that are shared out have been brought together.

    Example::

        custom_hooks = [dict(type='KernelLoggerHook', interval=100)]
        visualizer = dict(
            vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])

    Args:
        interval (int): The number of iterations between two logs, at least 1. Defaults to 100.

    Raises:
        UserError: If ``interval`` is not a whole number of at least 1, or if FSDP has sharded the
            parameters.
    """

    def __init__(self, interval: int = 100):
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise UserError(f'KernelLoggerHook: interval={interval!r}, wanted at least 1')
        self.interval = interval

    def before_train(self, runner) -> None:
        """Warn if the model has no blocks; refuse FSDP."""
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
        """Log every ``interval`` iterations."""
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
    """The similarity of the branches and the norm of the kernels of each group of layers.

    Args:
        model (nn.Module): Any module with blocks in training form.

    Returns:
        dict[str, float]: The scalars by tag, see :class:`KernelLoggerHook`.
    """
    # Everything is computed before the first number is read, so that a GPU is synchronised once.
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
    """The group of a layer: the first part of its name, not counting ``backbone``.

    Example:
        >>> group_of('backbone.layer1.0.conv2'), group_of('neck.fpn_convs.0.conv')
        ('layer1', 'neck')
    """
    return name.removeprefix('backbone.').partition('.')[0] or 'model'
