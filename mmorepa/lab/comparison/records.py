"""The records of runs: one in the folder of each, and all of a study in one small file.

The file is what a later session, or another machine, goes on with: it is committed, the folders
are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import UserError
from ...writing import write_text
from .measured_run import RESULT, Job


def read_record(job: Job) -> dict | None:
    """The record of a run, None if there is none.

    Raises:
        UserError: If it was made with other settings, or is no record.
    """
    path = Path(job.folder, RESULT)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        settings, _ = record['settings'], record['iterations']
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{path} is no record of a run: remove it, or name another --out') from None
    if settings != job.settings:
        raise UserError(
            f'{path} was made with other settings (the config, its options or --deterministic): '
            'name another --out, or remove that file to do the run again'
        )
    return record


def metric_of(records: Sequence[dict], metric: str | None = None) -> str:
    """The metric that records are compared by.

    Args:
        records (Sequence[dict]): Of finished runs; at least one.
        metric (str, optional): Its name. By default the first single number of the first run.

    Raises:
        UserError: If a run does not have it, or several numbers under it.
    """
    for record in records:
        numbers = [k for k, value in record['metrics'].items() if not isinstance(value, list)]
        metric = metric or next(iter(numbers), None)
        if metric not in numbers:
            raise UserError(
                f'{record["config"]} has no metric {metric!r}: choose a --metric from '
                f'{", ".join(numbers)}'
            )
    return metric


def unpack(path: str | os.PathLike, jobs: Sequence[Job]) -> None:
    """Put the records of a file into the folders of the runs that have none.

    Args:
        path (str | os.PathLike): From :func:`pack`; nothing is done if it does not exist.
        jobs (Sequence[Job]): The runs. What the file has of others stays where it is.

    Raises:
        UserError: If the file holds something else, or a record of a run with other settings; then
            nothing is done.
    """
    kept = _read(path)
    _refuse_other_settings(path, kept, {(job.name, job.seed): job.settings for job in jobs})
    for job in jobs:
        record = kept.get((job.name, job.seed))
        place = Path(job.folder, RESULT)
        if record is not None and not place.exists():
            write_text(json.dumps(record) + '\n', place)


def pack(path: str | os.PathLike, records: Iterable[dict]) -> None:
    """Add records to a file, one a line, by config and seed; it is written whole or not at all.

    Args:
        path (str | os.PathLike): The file, there or not.
        records (Iterable[dict]): They replace what is there of the same config, seed and settings.

    Raises:
        UserError: If the file holds something else, or a record of a run with other settings.
    """
    kept = _read(path)
    new = {(record['config'], record['seed']): record for record in records}
    _refuse_other_settings(path, kept, {run: record['settings'] for run, record in new.items()})
    kept |= new
    lines = ',\n'.join(json.dumps(kept[key]) for key in sorted(kept))
    write_text(f'[\n{lines}\n]\n', path)


def _refuse_other_settings(path: str | os.PathLike, kept: dict, settings: dict) -> None:
    for (name, seed), wanted in settings.items():
        if kept.get((name, seed), {}).get('settings', wanted) != wanted:
            raise UserError(
                f'{path} has a record of {name} seed {seed} with other settings (the config, its '
                'options or --deterministic): name another file with --records, or take it out'
            )


def _read(path: str | os.PathLike) -> dict[tuple[str, int], dict]:
    if not Path(path).exists():
        return {}
    try:
        records = json.loads(Path(path).read_text(encoding='utf-8'))
        return {(record['config'], record['seed']): record for record in records}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f'{path} holds no records of runs: name another file with --records'
        ) from None
