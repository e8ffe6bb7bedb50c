"""Putting data sets in place: each whole or not at all, and never over something else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from errno import EDQUOT, ENOSPC
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

    A stamp in each, ``<kind>.json``, says what it was made with, and has a checksum of each file.

    Args:
        out: Folder that gets one folder a set.
        plan: For each set, by its name, the arguments of its builder; they go into the stamp.
        builders: For each set what fills a new folder: ``build(folder, **arguments)``.
        kind: What the sets are of, one word.
        version: Of the sets; one of another version is refused, or written again.
        force: Write again what an earlier run made with other arguments, or what is damaged.

    Returns:
        For each set, True if it was written and False if it was there already, made with the
        same arguments.

    Raises:
        UserError: A set has no builder, something else is in the place of a set (only what this
            function wrote is ever replaced), files were added to a set that is to be replaced, a
            set is damaged, or a folder cannot be written.
    """
    if unknown := [name for name in plan if name not in builders]:
        raise UserError(f'format {unknown[0]!r} is unknown: want any of {", ".join(builders)}')
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
                stamp = {**stamps[name], 'files': _checksums(folder)}
                (folder / stamp_name).write_text(json.dumps(stamp) + '\n', encoding='utf-8')

            try:
                _build_and_move(targets[name], build)
            except OSError as error:
                room = 'make room there, or ' if error.errno in (ENOSPC, EDQUOT) else ''
                raise UserError(
                    f'cannot write {targets[name]} ({error.strerror or error}): '
                    f'{room}choose another folder'
                ) from error
    return missing


def _is_missing(target: Path, stamp_name: str, stamp: dict, kind: str, force: bool) -> bool:
    """Whether the set is yet to be written; an error if something else is in its place."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return True
    found = _read_stamp(target / stamp_name)
    # A real ImageNet or COCO may well be here, and force must not delete it.
    if any(found.get(key) != stamp[key] for key in ('made_by', 'format')):
        raise UserError(
            f'{target} is no {kind} set that mmorepa wrote: move it away, or choose another folder'
        )
    written, there = found.get('files'), _checksums(target)
    written = written if isinstance(written, dict) else {}
    there.pop(stamp_name, None)
    wrong = [name for name, checksum in written.items() if there.get(name) != checksum]
    is_alike = all(found.get(key) == value for key, value in stamp.items())
    if is_alike and not wrong:
        return False
    if added := there.keys() - written.keys():
        raise UserError(
            f'{target / min(added)} is not of the {kind} set, which is to be rewritten: move it '
            'away, or choose another folder'
        )
    if force:
        return True
    if is_alike:
        what = 'is not what was written' if wrong[0] in there else 'is missing'
        raise UserError(f'{target / wrong[0]} {what}: rewrite the set with --force (force=True)')
    raise UserError(
        f'{target} was made with {_spell(found, stamp)}, wanted {_spell(stamp, stamp)}: '
        'choose another folder, or rewrite it with --force (force=True)'
    )


def _read_stamp(path: Path) -> dict:
    try:
        stamp = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of each file in a folder and below, by its path from there."""
    return {
        path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes())
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def _spell(stamp: dict, keys: Iterable[str]) -> str:
    """What a stamp says under some keys."""
    return ', '.join(f'{k} {stamp.get(k)}' for k in keys if k not in ('made_by', 'format'))


def _build_and_move(target: Path, build: Callable[[Path], None]) -> None:
    """Build beside ``target`` and rename, so that ``target`` is whole at every moment."""
    new = target.with_name(f'.{target.name}.{os.getpid()}.new')
    old = target.with_name(f'.{target.name}.{os.getpid()}.old')
    parent = target.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
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
        with contextlib.suppress(OSError):  # of a folder that others have used meanwhile
            for folder in made:
                folder.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
