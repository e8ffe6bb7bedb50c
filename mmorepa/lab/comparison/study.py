"""Training several configs with several seeds, one run after the other, each in its own process.

A finished run leaves a record and is not done again, so that what was interrupted goes on where it
stopped. What the records say together is :mod:`mmorepa.lab.comparison.summary`'s affair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median

import torch
from mmengine.config import Config
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...errors import UserError
from . import measured_run
from .measured_run import LOG, Job
from .records import metric_of, read_record

#: Runs are forked from a process that has imported what they need and done nothing else. One that
#: was forked from this process would begin with its memory.
CONTEXT = multiprocessing.get_context('forkserver')
SECONDS_TO_END = 10
#: Fields of a config that say what is shown or logged, not what is computed.
SHOWN = ('visualizer', 'vis_backends', 'log_level', 'log_processor')


def plan(
    configs: Sequence[str | os.PathLike],
    seeds: Iterable[int],
    out: str | os.PathLike,
    cfg_options: Mapping | None = None,
    options_for: Sequence[tuple[str, Mapping]] = (),
    deterministic: bool = False,
) -> list[Job]:
    """The runs of a comparison: all configs with the first seed, all with the second, and so on.

    So what changes on the machine over the hours meets all configs alike.

    Args:
        configs (Sequence[str | os.PathLike]): The config files. ``NAME=FILE`` gives one another
            name than its file's, so that one file can take part several times.
        seeds (Iterable[int]): What to begin with; one that is named twice counts once.
        out (str | os.PathLike): Folder that gets a folder for each run, ``<config>/seed<seed>``.
        cfg_options (Mapping, optional): Fields of all configs to change, dotted keys.
        options_for (Sequence[tuple[str, Mapping]]): Patterns of config names, ``*`` standing for
            anything, and fields that are changed in these configs alone. They come last.
        deterministic (bool): See :class:`Job`. Defaults to False.

    Returns:
        list[Job]: In the order in which they are to be done.

    Raises:
        UserError: If a config does not exist, two have one name, or a pattern matches none.
    """
    paths = {}
    for config in map(str, configs):
        name, path = named(config)
        if not path.is_file():
            raise UserError(f'no config at {path}: check the path')
        if name in paths:
            raise UserError(
                f'{paths[name]} and {path} are both called {name}: give one of them another name, '
                f'OTHER={path}'
            )
        paths[name] = path
    for pattern, _ in options_for:
        if not any(fnmatchcase(name, pattern) for name in paths):
            raise UserError(f'no config is called {pattern!r}: choose from {", ".join(paths)}')

    jobs = []
    for name, path in paths.items():
        options = dict(cfg_options or {})
        for pattern, more in options_for:
            if fnmatchcase(name, pattern):
                options.update(more)
        jobs.append(
            dict(
                config=str(path),
                name=name,
                cfg_options=options,
                deterministic=deterministic,
                settings=digest(path, options, deterministic),
            )
        )
    return [
        Job(**job, seed=seed, folder=str(Path(out, job['name'], f'seed{seed}')))
        for seed in dict.fromkeys(seeds)
        for job in jobs
    ]


def named(config: str) -> tuple[str, Path]:
    """The name and the file of a config that is given as ``FILE`` or ``NAME=FILE``."""
    name, equals, file = config.partition('=')
    if equals and name and '/' not in name and not Path(config).is_file():
        return name, Path(file)
    path = Path(config)
    # A name may have a point in it, such as that of a width.
    return path.stem if path.suffix in ('.py', '.json', '.yaml', '.yml') else path.name, path


def digest(path: Path, cfg_options: Mapping, deterministic: bool) -> str:
    """What a run depends on beside the seed and the software, in 16 characters.

    Fields that say what is shown or logged (:data:`SHOWN`) are left out: a result does not
    depend on them. The digest is empty where the config cannot be read: its run will say why.
    """
    try:
        # The imports take seconds and are the runs' own affair.
        cfg = Config.fromfile(path, import_custom_modules=False)
        cfg.merge_from_dict(dict(cfg_options))
        fields = {name: value for name, value in cfg.to_dict().items() if name not in SHOWN}
        try:
            text = json.dumps([fields, deterministic], sort_keys=True, default=repr)
        except TypeError:  # of keys that JSON does not have or cannot sort
            text = repr([fields, deterministic])
    except (Exception, SystemExit):
        return ''
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_all(
    jobs: Sequence[Job],
    console: Console | None = None,
    on_record: Callable[[dict], None] = lambda record: None,
    metric: str | None = None,
) -> tuple[list[dict], list[tuple[Job, str]]]:
    """Do all runs that have no record yet; one that fails is noted, and the rest goes on.

    Args:
        jobs (Sequence[Job]): From :func:`plan`.
        console (Console, optional): Shows how far it is: a bar on a terminal, and a line a run.
            By default standard error.
        on_record (Callable[[dict], None]): Called with each record, as soon as it is there.
        metric (str, optional): What a line shows. Defaults to the first metric of the run.

    Returns:
        tuple[list[dict], list[tuple[Job, str]]]: The records of the finished runs, in the order of
        the jobs, see :func:`mmorepa.lab.comparison.measured_run.run`; and the runs that failed or
        whose metric is not finite, with the reason.

    Raises:
        UserError: If a record is there that was made with other settings; then nothing is done.
            If a run does not have the metric; then no further run is done.
    """
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    records = [read_record(job) for job in jobs]
    missing = [job for job, record in zip(jobs, records) if record is None]
    # MMEngine asks for a GPU where it is imported, and no process forked after that can use one.
    preload = [measured_run.__name__, *imports_of(missing)]
    CONTEXT.set_forkserver_preload([] if torch.cuda.is_available() else preload)
    found, failures, done = [], [], 0
    with Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.percentage:.0f} %'),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task('', total=len(missing))
        for number, (job, record) in enumerate(zip(jobs, records), 1):
            title = f'[{number}/{len(jobs)}] {job.name} seed {job.seed}'
            before, failure = 'done before, ' if record else '', ''
            if record is None:
                bar.update(task, description=escape(title))
                failure = run_in_process(
                    job, lambda part, done=done: bar.update(task, completed=done + part)
                )
                record = None if failure else read_record(job)
                done += 1
                bar.update(task, completed=done)
            if record is not None:
                on_record(record)
                name = metric_of([record], metric)
                if not math.isfinite(value := record['metrics'][name]):
                    failure = f'{name} is {value}: wanted a finite one, try a lower rate'
            if failure:
                failures.append((job, failure))
                log = Path(job.folder, LOG)
                console.print(f'{title} FAILED: {failure}; its log is {log}', markup=False)
            else:
                found.append(record)
                console.print(f'{title}: {before}{in_brief(record, metric)}', markup=False)
    return found, failures


def in_brief(record: dict, metric: str | None = None) -> str:
    """A run in a few words: its metric, the time of a step and of training."""
    metric = metric_of([record], metric)
    value, step = record['metrics'][metric], median(record['step_seconds'])
    return f'{metric} {value:.4g}, {1e3 * step:.3g} ms a step, {record["train_seconds"]:.0f} s'


def imports_of(jobs: Sequence[Job]) -> set[str]:
    """The modules of this package that the configs of jobs import."""
    modules = set()
    for path in {job.config for job in jobs}:
        with contextlib.suppress(Exception, SystemExit):  # the run will say what is wrong
            cfg = Config.fromfile(path, import_custom_modules=False)
            modules.update(cfg.custom_imports['imports'])
    return {name for name in modules if name.startswith('mmorepa.')}


def run_in_process(job: Job, report: Callable[[float], None]) -> str:
    """Do a run in a fresh process.

    Args:
        job (Job): The run.
        report (Callable[[float], None]): Called with the part of the training that is done.

    Returns:
        str: Why it failed, one line; empty if it did not.
    """
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=measured_run.start, args=(job, sender))
    process.start()
    sender.close()
    reason = ''
    try:
        # The pipe closes when the process ends, however it ends.
        with contextlib.suppress(EOFError):
            while True:
                message = receiver.recv()
                if isinstance(message, str):
                    reason = message
                else:
                    report(message)
        process.join()
    finally:
        _end(process)
        receiver.close()
    if process.exitcode == 0:
        return ''
    if process.exitcode < 0:
        return f'ended by {signal.Signals(-process.exitcode).name}'
    return reason or f'exit code {process.exitcode}'


def _end(process: BaseProcess) -> None:
    process.terminate()
    process.join(SECONDS_TO_END)
    process.kill()
    process.join()
