"""Weight decay on equivalent kernels, in every step of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.logging import MessageHub
from torch import nn
from torch.optim import Optimizer

from ..convs import ReparamConv2d
from ..convs.blocks.kernel_penalty import decays_as_a_kernel, kernel_parameters, kernel_penalty
from ..convs.orepa.squeezed_training import pull_block_back
from .squeezed_step import squeezed_blocks

#: What the term is called in the log.
NAME = 'kernel_decay'


class KernelDecay:
    """Adds the gradient of the penalties on equivalent kernels, right before the optimizer's step.

    That is the place of weight decay in the optimizers: behind gradient accumulation, the average
    over processes, the unscaling of AMP, and clipping, and left out where AMP leaves out a step.
    The term, half the decay times the penalty, summed up over the blocks, is logged as
    ``kernel_decay``.

    Args:
        blocks (Sequence[tuple[ReparamConv2d, float]]): Blocks and the weight decay of each.
    """

    def __init__(self, blocks: Sequence[tuple[ReparamConv2d, float]]):
        self.blocks = [(block, decay) for block, decay in blocks if decay]

    def attach(self, optimizer: Optimizer) -> None:
        """Let an optimizer call this before each step."""
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, *args) -> None:
        terms = [self._pull(block, decay) for block, decay in self.blocks]
        terms = [term for term in terms if term is not None]
        if terms:
            value = torch.stack(terms).sum()
            MessageHub.get_current_instance().update_scalar(f'train/{NAME}', value)

    @staticmethod
    def _pull(block: ReparamConv2d, decay: float) -> torch.Tensor | None:
        # As weight decay does, leave alone what got no gradient.
        parameters = [p for p in kernel_parameters(block) if p.grad is not None]
        if not parameters:
            return None
        own = {id(parameter) for parameter in parameters}
        squeezed, behind = {}, set()
        for conv in squeezed_blocks(block):
            branches = [p for p in conv.kernel.parameters() if id(p) in own]
            if branches and conv.weight.requires_grad:
                squeezed[conv] = branches
            # Whatever they require, the term sees the kernel alone.
            behind.update(map(id, branches))
        seen = [p for p in parameters if p.requires_grad and id(p) not in behind]
        with torch.enable_grad():
            term = decay / 2 * kernel_penalty(block)
            inputs = [*seen, *(conv.weight for conv in squeezed)]
            gradients = torch.autograd.grad(term, inputs)
        for parameter, gradient in zip(seen, gradients):
            parameter.grad.add_(gradient)
        for (conv, branches), gradient in zip(squeezed.items(), gradients[len(seen) :]):
            pull_block_back(conv, gradient, branches)
        return term.detach().float()


def decaying_blocks(model: nn.Module) -> dict[str, ReparamConv2d]:
    """The blocks of a model that have an equivalent kernel, by name; none inside of another."""
    found = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{outer}.') or not outer for outer in found)
        if decays_as_a_kernel(module) and not inside:
            found[name] = module
    return found
