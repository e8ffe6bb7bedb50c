"""Compiling what generates a kernel: the option ``compile`` of an OREPA block.

Beside the matrix products, the sum of a k x k block's branches and its derivative are passes over
memory. ``torch.compile`` makes a few loops of them, in C++ on a CPU and in Triton on a GPU. Each
geometry is compiled once, for its own sizes, when it is first met.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import types
import warnings
from collections.abc import Callable, Hashable, Iterator

import torch
from torch import nn

#: Of torch's inductor: one loop for all branches. It would write down every fourth sum else.
OPTIONS = dict(
    realize_reads_threshold=64, realize_acc_reads_threshold=64, realize_opcount_threshold=256
)

_functions: dict[Hashable, tuple[Callable, nn.Module]] = {}
_is_available = True


def run(function: Callable, block: nn.Module, *args):
    """``function(block, *args)``, compiled where the block asks for it and is trained.

    Where nothing can be compiled, it runs as it is, after one warning a process.

    Args:
        function (Callable): Plain, and with no tensors but those in ``args``. Should it write to
            one, it does so last.
        block (nn.Module): A :class:`mmorepa.convs.orepa.BranchSum`.
        args: Tensors, the first of them of the dtype and on the device of the others; and mappings
            of tensors.
    """
    global _is_available
    if not (block.compile_kernel and block.training and _is_available):
        return function(block, *args)
    try:
        compiled, skeleton = _compiled(function, block, *args)
        with _same_denormals():
            return compiled(skeleton, *args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # What fails here too is no fault of the compiler.
        result = function(block, *args)
        _is_available = False
        cause = getattr(error, 'inner_exception', error)
        reason = (str(cause).strip() or 'no reason given').splitlines()[0]
        warnings.warn(
            f'compile=True: torch cannot compile here ({type(cause).__name__}: {reason}); kernels '
            'are generated without it: install a C++ compiler, or leave the option out',
            stacklevel=2,
        )
        return result


def _compiled(function: Callable, block: nn.Module, *args) -> tuple[Callable, nn.Module]:
    key = function, block.geometry, args[0].dtype, args[0].device
    if key not in _functions:
        own = _with_own_code(function, f'{function.__name__}_{len(_functions)}')
        compiled = torch.compile(own, dynamic=False, fullgraph=True, options=OPTIONS)
        _functions[key] = compiled, _without_tensors(block)
    return _functions[key]


def _with_own_code(function: Callable, name: str) -> Callable:
    """A copy that torch takes for another function: it compiles one eight times at most."""
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name)


@contextlib.contextmanager
def _same_denormals() -> Iterator[None]:
    """Keep what the processor does with numbers below the normal range.

    Inductor links with ``-ffast-math``, and loading such a library makes it flush them to zero, in
    everything that the thread computes from then on.
    """
    before = _flushes_denormals()
    try:
        yield
    finally:
        if _flushes_denormals() != before:
            torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    return sys.float_info.min / 2 == 0


def _without_tensors(block: nn.Module) -> nn.Module:
    """A copy with branches that have no parameters and buffers."""
    skeleton = copy.copy(block)
    skeleton._modules = {name: copy.copy(branch) for name, branch in block.named_children()}
    for branch in skeleton.children():
        branch._parameters, branch._buffers = {}, {}
    return skeleton
