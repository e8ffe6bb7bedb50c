"""Activation checkpointing that leaves no trace in BatchNorms.

What is computed a second time in the backward pass would update running statistics a second time
too. Blocks whose branches pad with what a BatchNorm makes of zero, such as DBB's, would then
compute something else than the first time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass instead of being kept in memory.

    Args:
        module (nn.Module): Holds the BatchNorms that the function runs.
        function (Callable): See above.
        x (Tensor): Its input.

    Returns:
        Tensor: Its output. Gradients and running statistics are those without checkpointing;
        under ``torch.compile``, which takes no contexts, statistics are updated twice.
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False)
    contexts = (nullcontext(), KeptStatistics(module))
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: contexts)


class KeptStatistics:
    """A context in which BatchNorms in training mode do not update their running statistics.

    They do go through the motions, for what is computed again has to keep the same tensors.

    Args:
        module (nn.Module): Holds the BatchNorms.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __enter__(self) -> None:
        self.before = []
        for norm in self.module.modules():
            if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats:
                self.before.append((norm, norm.momentum, norm.num_batches_tracked))
                norm.momentum = 0.0
                norm.num_batches_tracked = norm.num_batches_tracked.clone()

    def __exit__(self, *args) -> None:
        for norm, momentum, num_batches_tracked in self.before:
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches_tracked


class CheckpointedForward:
    """In the place of a residual block's ``forward``: the library's own, computed again later.

    Args:
        block (nn.Module): Takes one tensor and gives one.
    """

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        forward = partial(type(self.block).forward, self.block)
        return checkpointed(self.block, forward, x) if x.requires_grad else forward(x)


def checkpoint_blocks(model: nn.Module) -> None:
    """Let the residual blocks that a library checkpoints leave no trace in BatchNorms.

    Args:
        model (nn.Module): Changed in place; blocks whose ``with_cp`` is set lose it.
    """
    for block in model.modules():
        if block is not model and getattr(block, 'with_cp', False) and hasattr(block, 'conv2'):
            block.with_cp = False
            block.forward = CheckpointedForward(block)
