"""Computing in the precision of the tensors at hand."""

from __future__ import annotations

import contextlib

import torch


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast, on any device."""
    if device.type == 'meta':  # which has none
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
