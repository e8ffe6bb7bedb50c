"""Hooks that are added to every training."""

from __future__ import annotations

from mmengine.config import Config

from ..config_types import is_of_type


def add_hooks(cfg: Config, *names: str) -> None:
    """Add hooks of this package to a config that lacks them.

    Args:
        cfg (Config): Changed in place.
        names (str): Names of hooks that take no arguments.
    """
    hooks = cfg.get('custom_hooks') or []
    present = [*hooks, *filter(None, (cfg.get('default_hooks') or {}).values())]
    missing = [name for name in names if not any(is_of_type(hook, name) for hook in present)]
    # With the prefix MMEngine finds the hooks without an import, also in a dumped config.
    cfg.custom_hooks = [*hooks, *(dict(type=f'mmorepa.{name}') for name in missing)]
