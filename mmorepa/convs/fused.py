"""The sum of an OREPA block's branches as one autograd function.

The plain statement of it, ``sum(branch.kernel())``, is dozens of small operations, of which
autograd keeps every intermediate kernel. Here a block is one operation that keeps its parameters
and nothing else: its branches add themselves to one tensor in turn, and the backward pass goes
over the gradient of the kernel once a branch. What remains to be computed is the product of the
1x1 - k x k branch, its two products backward, and passes over memory; of these a compiler, where it
is asked for, makes a few, see :mod:`mmorepa.convs.compiled`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor, nn

from . import compiled
from .rows import as_kernel, as_rows, is_fused

#: Branches whose gradients no compiler makes, in this order: products of matrices, and a scaling
#: of the kernel's gradient in place, which therefore comes last.
ALONE = ('pointwise_kxk', 'original')

_by_reference = False


def sum_of_kernels(block: nn.Module) -> Tensor:
    """The sum of a block's scaled kernels, (O, I/g, k, k), in channels_last memory format.

    Args:
        block (nn.Module): Its children are branches of the same geometry.
    """
    # A compiler fuses the plain statement by itself.
    if _by_reference or is_fused():
        return reduce(torch.add, [branch.kernel() for branch in block.children()])
    names, tensors = [], []
    for name, branch in block.named_children():
        own = branch.tensors()
        names += [(name, key) for key in own]
        tensors += own.values()
    return _SumOfKernels.apply(block, names, *tensors)


@contextlib.contextmanager
def by_reference() -> Iterator[None]:
    """Sum up the kernels as the formula has it: for tests, and for forward-mode derivatives."""
    global _by_reference
    before, _by_reference = _by_reference, True
    try:
        yield
    finally:
        _by_reference = before


class _SumOfKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, block: nn.Module, names: list[tuple[str, str]], *tensors: Tensor) -> Tensor:
        ctx.block, ctx.names = block, names
        ctx.save_for_backward(*tensors)
        own = _by_branch(names, tensors)
        # The one with a product of its own size begins, so that the others add to that.
        first, *others = sorted(own, key=lambda name: name != 'pointwise_kxk')
        rows = getattr(block, first).new_rows(**own[first])
        if others:
            compiled.run(_add_rows, block, rows, {name: own[name] for name in others})
        return as_kernel(rows, block.kernel_size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        # A backward pass may run under autocast; kernels keep their precision all the same.
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled():
                return None, None, *_differentiable(ctx.block, ctx.names, tensors, wanted, grad)
            rows = as_rows(grad)
            is_copy = rows.data_ptr() != grad.data_ptr()
            own, wants = _by_branch(ctx.names, tensors), _by_branch(ctx.names, wanted)
            own = {name: own[name] for name in own if any(wants[name].values())}
            together = {name: own[name] for name in own if name not in ALONE}
            found = compiled.run(_pull_back, ctx.block, rows, together) if together else {}
            for name in filter(own.get, ALONE):
                branch = getattr(ctx.block, name)
                is_last = name == 'original' and is_copy
                pull_back = branch.pull_back_in_place if is_last else branch.pull_back
                found[name] = pull_back(rows, **own[name])
        found = [found[a][b] if wants else None for (a, b), wants in zip(ctx.names, wanted)]
        return None, None, *found


def _add_rows(block: nn.Module, rows: Tensor, own: dict[str, dict[str, Tensor]]) -> None:
    """Add the kernels of some branches to ``rows``, in place."""
    if is_fused():
        terms = [getattr(block, name).term(**tensors) for name, tensors in own.items()]
        rows.add_(reduce(torch.add, terms))
        return
    for name, tensors in own.items():
        getattr(block, name).add_rows(rows, **tensors)


def _pull_back(
    block: nn.Module, rows: Tensor, own: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """The gradients of some branches, where that of the kernel is ``rows``, (O, k^2, I/g)."""
    return {name: getattr(block, name).pull_back(rows, **own[name]) for name in own}


def _differentiable(block, names, tensors, wanted, grad) -> list[Tensor | None]:
    """The gradients with a graph of their own, for a second derivative; by the plain statement."""
    own = {'.'.join(name): tensor for name, tensor in zip(names, tensors)}
    with by_reference():
        kernel = torch.func.functional_call(block, own, ())
    inputs = [tensor for tensor, wants in zip(tensors, wanted) if wants]
    gradients = iter(torch.autograd.grad(kernel, inputs, grad, create_graph=True))
    return [next(gradients) if wants else None for wants in wanted]


def _by_branch(names: list[tuple[str, str]], values) -> dict[str, dict]:
    own = {name: {} for name, _ in names}
    for (name, key), value in zip(names, values):
        own[name][key] = value
    return own
