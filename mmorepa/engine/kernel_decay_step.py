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

#: The name of the term in the log.
NAME = 'kernel_decay'


class KernelDecay:
    """Adds the gradient of the penalties on equivalent kernels before the optimizer's step.

    Optimizers apply weight decay at the same place: after gradient accumulation, averaging over
    processes, AMP's unscaling and clipping. Where AMP skips a step, nothing is added. The term,
    half the decay times the penalty, summed over the blocks, is logged as ``kernel_decay``.

    Args:
        blocks (Sequence[tuple[ReparamConv2d, float]]): Blocks and the weight decay of each.
    """

    def __init__(self, blocks: Sequence[tuple[ReparamConv2d, float]]):
        self.blocks = [(block, decay) for block, decay in blocks if decay]

    def attach(self, optimizer: Optimizer) -> None:
        """Register this object with an optimizer, which then calls it before each step."""
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, *args) -> None:
        terms = [self._pull(block, decay) for block, decay in self.blocks]
        terms = [term for term in terms if term is not None]
        if terms:
            value = torch.stack(terms).sum()
            MessageHub.get_current_instance().update_scalar(f'train/{NAME}', value)

    @staticmethod
    def _pull(block: ReparamConv2d, decay: float) -> torch.Tensor | None:
        # Like weight decay, leave parameters without a gradient alone.
        parameters = [p for p in kernel_parameters(block) if p.grad is not None]
        if not parameters:
            return None
        own = {id(parameter) for parameter in parameters}
        squeezed, behind = {}, set()
        for conv in squeezed_blocks(block):
            branches = [p for p in conv.kernel.parameters() if id(p) in own]
            if branches and conv.weight.requires_grad:
                squeezed[conv] = branches
            # The term depends on the kernel only, whether or not its branches require grad.
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
    """The blocks with an equivalent kernel by name, without blocks inside other blocks."""
    found = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{outer}.') or not outer for outer in found)
        if decays_as_a_kernel(module) and not inside:
            found[name] = module
    return found
