"""The types in a config: names, or the classes themselves in MMEngine's new style of configs."""

from __future__ import annotations

from typing import Any

#: What MMEngine calls a checkpoint in ``init_cfg``: by its name in the registry, by its class.
PRETRAINED = ('Pretrained', 'PretrainedInit')


def is_of_type(cfg: Any, *names: str) -> bool:
    """Whether a part of a config, or an object that was built of it, has one of these types.

    Args:
        cfg (Any): A dict with ``type``, which is a name with or without a prefix, or a class; or
            the object itself.
        names (str): The names of classes, without prefixes.
    """
    found = cfg.get('type') if isinstance(cfg, dict) else type(cfg)
    found = found if isinstance(found, str) else getattr(found, '__name__', '')
    return found.rpartition('.')[2] in names
