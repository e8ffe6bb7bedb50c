"""The hooks of modules that are replaced."""

from __future__ import annotations

from torch import nn


def take_hooks_over(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give a module the forward and backward hooks of another; their handles still remove them.

    Returns:
        nn.Module: ``new``.
    """
    for name, hooks in vars(old).items():
        if name.startswith(('_forward_', '_backward_')) and hooks:
            vars(new)[name] = hooks
    return new


def has_hook_between(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a hook may see or change what a convolution hands to the norm behind it."""
    return bool(conv._forward_hooks or norm._forward_pre_hooks)
