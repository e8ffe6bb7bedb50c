"""The files of a config: those that it is based on, and the text that it is written as."""

from __future__ import annotations

import ast
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config

from .errors import UserError

#: The types of values that a config file can hold.
PLAIN = (str, int, float, bool, bytes, type(None))


def bases_of(path: str | os.PathLike) -> list[Path]:
    """The files that a config is based on, directly or by way of others, in both styles.

    Args:
        path (str | os.PathLike): A config that can be read. Bases in packages, ``mmdet::...``, are
            left out.
    """
    found: dict[Path, None] = {}

    def look(path: Path) -> None:
        for base in _direct_bases(path):
            if base.is_file() and base not in found:
                found[base] = None
                look(base)

    look(Path(path))
    return list(found)


def _direct_bases(path: Path) -> Iterator[Path]:
    for name in Config._get_base_files(str(path)):
        yield Path(os.path.normpath(path.parent / name))
    if path.suffix != '.py':
        return
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.With) and 'read_base' in ast.dump(node.items[0]):
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.level:
                    parts = [*['..'] * (line.level - 1), *(line.module or '').split('.')]
                    yield Path(os.path.normpath(path.parent.joinpath(*parts).with_suffix('.py')))


def refuse_objects(cfg: Config) -> None:
    """Refuse a config that MMEngine cannot lay out, as it does when a training begins.

    Raises:
        UserError: If a value has no text that is Python code: a class, a function, most objects.
    """
    for key, value in _values(cfg.to_dict()):
        if not _has_text(value):
            raise _misfit(cfg, key, value)


def _has_text(value: object) -> bool:
    """Whether Python writes a value as code. Thousands of digits it does not write at all."""
    try:
        return isinstance(value, str) or bool(ast.parse(repr(value), mode='eval'))
    except (SyntaxError, ValueError):
        return False


def text_of(cfg: Config) -> str:
    """The text of a config with all its bases; unlike MMEngine's also with numbers such as inf.

    Raises:
        UserError: If a value is none that a config file can hold.
    """
    numbers = {}

    def plain(value, key=''):
        if isinstance(value, dict):
            return {name: plain(item, f'{key}.{name}') for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(plain(item, f'{key}.{i}') for i, item in enumerate(value))
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float) and not math.isfinite(value):
            mark = f'<number {value} {secrets.token_hex()}>'  # a text that nothing else is
            numbers[mark] = f"float('{value}')"
            return mark
        if type(value) not in PLAIN or not _has_text(value):
            raise _misfit(cfg, key.lstrip('.'), value)
        return value

    text = Config(plain(cfg.to_dict())).pretty_text
    for mark, number in numbers.items():
        text = text.replace(repr(mark), number)
    return text


def _misfit(cfg: Config, key: str, value: object) -> UserError:
    return UserError(
        f'{cfg.filename or "the config"} has {key} of the type {type(value).__name__}, which no '
        'config file can hold: take numbers, texts and lists, and del what only computes them'
    )


def _values(value: object, key: str = '') -> Iterator[tuple[str, object]]:
    """The values in nested dicts and lists, with dotted keys."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _values(item, f'{key}.{name}'.lstrip('.'))
    elif isinstance(value, (list, tuple, set)):
        for number, item in enumerate(value):
            yield from _values(item, f'{key}.{number}')
    else:
        yield key, value
