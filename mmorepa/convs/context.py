"""What the code runs under: autocast, and whatever watches instead of plain autograd."""

from __future__ import annotations

import contextlib

import torch
from torch.autograd import forward_ad


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast, on any device."""
    if device.type == 'meta':  # which has none
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_traced() -> bool:
    """Whether something other than plain autograd watches: a compiler, a tracer, torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
