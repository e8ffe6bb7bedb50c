"""Putting data sets in place: each whole or not at all, and never over something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import UserError


def write_sets(
    out: str | os.PathLike,
    plan: Mapping[str, Mapping],
    builders: Mapping[str, Callable[..., None]],
    kind: str,
    version: int,
    force: bool = False,
) -> dict[str, bool]:
    """Write several sets; if one of them is refused, none is written.

    A stamp in each, ``<kind>.json``, says what it was made with.

    Args:
        out: Folder that gets one folder a set.
        plan: For each set, by its name, the arguments of its builder; they go into the stamp.
        builders: For each set what fills a new folder: ``build(folder, **arguments)``.
        kind: What the sets are of, one word.
        version: Of the sets; one of another version is refused, or written again.
        force: Write again what an earlier run made with other arguments.

    Returns:
        For each set, True if it was written and False if it was there already, made with the
        same arguments.

    Raises:
        UserError: Something else is in the place of a set (only what this function wrote is ever
            replaced), or a folder cannot be written.
    """
    # A linked set is looked at, and replaced, where it really is.
    targets = {name: Path(out, name).resolve() for name in plan}
    stamps = {
        name: {'made_by': f'mmorepa {kind}', 'version': version, 'format': name, **arguments}
        for name, arguments in plan.items()
    }
    stamp_name = f'{kind}.json'
    missing = {
        name: _is_missing(targets[name], stamp_name, stamps[name], kind, force) for name in plan
    }
    for name, arguments in plan.items():
        if missing[name]:

            def build(folder: Path, name=name, arguments=arguments) -> None:
                builders[name](folder, **arguments)
                (folder / stamp_name).write_text(json.dumps(stamps[name]) + '\n', encoding='utf-8')

            try:
                _build_and_move(targets[name], build)
            except OSError as error:
                raise UserError(
                    f'cannot write {targets[name]} ({error.strerror or error}): '
                    'make room there, or choose another folder'
                ) from error
    return missing


def _is_missing(target: Path, stamp_name: str, stamp: dict, kind: str, force: bool) -> bool:
    """Whether the set is yet to be written; an error if something else is in its place."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return True
    found = _read_stamp(target / stamp_name)
    if found == stamp:
        return False
    # A real ImageNet or COCO may well be here, and force must not delete it.
    if any(found.get(key) != stamp[key] for key in ('made_by', 'format')):
        raise UserError(
            f'{target} is no {kind} set that mmorepa wrote: move it away, or choose another folder'
        )
    if force:
        return True
    raise UserError(
        f'{target} was made with {_spell(found)}, wanted {_spell(stamp)}: '
        'choose another folder, or rewrite it with --force (force=True)'
    )


def _read_stamp(path: Path) -> dict:
    try:
        stamp = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _spell(stamp: dict) -> str:
    return ', '.join(f'{k} {v}' for k, v in stamp.items() if k not in ('made_by', 'format'))


def _build_and_move(target: Path, build: Callable[[Path], None]) -> None:
    """Build beside ``target`` and rename, so that ``target`` is whole at every moment."""
    new = target.with_name(f'.{target.name}.{os.getpid()}.new')
    old = target.with_name(f'.{target.name}.{os.getpid()}.old')
    try:
        new.mkdir(parents=True)
        build(new)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:  # Ctrl-C too
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
