"""Activation checkpointing that updates the running statistics of BatchNorms only once.

The backward pass computes a checkpointed function again, which would update running statistics a
second time. Blocks whose branches pad with a BatchNorm's output for zero, such as DBB's, would then
also compute something else than the first time.
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
    """Compute ``function(x)`` with activation checkpointing.

    Activations are computed again in the backward pass instead of being kept in memory.

    Args:
        module (nn.Module): The module with the BatchNorms that ``function`` runs.
        function (Callable): The function to checkpoint.
        x (Tensor): The input of ``function``.

    Returns:
        Tensor: ``function(x)``. Gradients and running statistics are the same as without
        checkpointing, except under ``torch.compile``: it accepts no contexts, so statistics are
        updated twice.
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False)
    contexts = (nullcontext(), KeptStatistics(module))
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: contexts)


class KeptStatistics:
    """A context in which BatchNorms in training mode do not update their running statistics.

    The BatchNorms do run their update, with momentum 0, because the second computation must save
    the same tensors as the first.

    Args:
        module (nn.Module): The module with the BatchNorms.
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
    """Replaces a residual block's ``forward`` by the library's own one with checkpointing.

    Args:
        block (nn.Module): Its ``forward`` takes one tensor and returns one.
    """

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        forward = partial(type(self.block).forward, self.block)
        return checkpointed(self.block, forward, x) if x.requires_grad else forward(x)


def checkpoint_blocks(model: nn.Module) -> None:
    """Replace a library's activation checkpointing of residual blocks by the one here.

    Args:
        model (nn.Module): Changed in place. Blocks with ``with_cp`` set get this checkpointing, and
            their ``with_cp`` is unset.
    """
    for block in model.modules():
        if block is not model and getattr(block, 'with_cp', False) and hasattr(block, 'conv2'):
            block.with_cp = False
            block.forward = CheckpointedForward(block)
