"""Hooks that training has without being asked for."""

from __future__ import annotations

from mmengine.config import Config


def add_hooks(cfg: Config, *names: str) -> None:
    """Add hooks of this package to a config that lacks them.

    Args:
        cfg (Config): Changed in place.
        names (str): Of hooks without arguments.
    """
    hooks = cfg.get('custom_hooks') or []
    missing = [name for name in names if not any(is_of_type(hook, name) for hook in hooks)]
    # With the prefix MMEngine finds them by itself, in a config that was dumped too.
    cfg.custom_hooks = [*hooks, *(dict(type=f'mmorepa.{name}') for name in missing)]


def is_of_type(cfg, name: str) -> bool:
    """Whether a part of a config is of a type, by its name with or without a prefix."""
    found = cfg.get('type') if isinstance(cfg, dict) else type(cfg)
    found = found if isinstance(found, str) else getattr(found, '__name__', '')
    return found.rpartition('.')[2] == name
