"""The context that code runs in: autocast, and whatever traces it instead of plain autograd."""

from __future__ import annotations

import contextlib

import torch
from torch.autograd import forward_ad


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast, on any device."""
    if device.type == 'meta':  # has no autocast
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_traced() -> bool:
    """Whether a compiler, a tracer or torch.func traces the code instead of plain autograd."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
