"""From the options of ``tools/benchmark.py`` to what it prints and writes."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import torch

from ...errors import UserError
from .measuring import Study
from .pictures import write_pictures
from .plan import (
    BETWEEN_PROCESSES,
    MEASURES,
    Case,
    KernelCase,
    NetworkCase,
    Setup,
    conditions,
    for_kernels,
    ladder,
)
from .results import Results, read
from .roofline import PUBLISHED_BATCH, PUBLISHED_PROCESSES
from .subjects import NETWORKS, RELEASED, SHARED_OUT, Subject, parse
from .tables import to_markdown, write_markdown

DEFAULT_SUBJECTS = ('none', 'DBB', 'OREPA', 'OREPA-squeezed', 'OREPA-offline')
#: Where several processes train.
TOGETHER = ('none', 'OREPA', 'OREPA-squeezed', SHARED_OUT)

#: The networks of presets, unless the options name others.
PAPER, BOTH = ['resnet18'], ['resnet18', 'resnet50']

RESULTS = 'benchmark.json'
REPORT = 'benchmark.md'


def run(args: argparse.Namespace, command: str, targets=None) -> str:
    """Measure what the options say; write results, report and pictures into ``args.out``.

    Args:
        args (argparse.Namespace): Of ``tools/benchmark.py``.
        command (str): The command line, to be noted.
        targets (optional): ``tools/targets.py``, where it is there.

    Returns:
        str: The report.

    Raises:
        UserError: If options do not go together, or name what is not there.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    study = Study(
        plan(args, targets),
        args.repeats,
        args.warm_up,
        args.released,
        command,
        preset=args.preset,
        threads_each=args.threads or 1,
    )
    path = args.out / RESULTS
    try:
        study.run(save=lambda results: results.write(path))
    except KeyboardInterrupt:
        print(f'{path} holds what was measured; show it with --from-json {path}', file=sys.stderr)
        raise
    return show(path, args.out, targets)


def show(path: str | os.PathLike, out: str | os.PathLike, targets=None) -> str:
    """Write the report and the pictures of results that are there.

    Args:
        path (str | os.PathLike): The ``benchmark.json``.
        out (str | os.PathLike): The folder for the others.
        targets (optional): ``tools/targets.py``, where it is there: results of its preset are held
            against them.

    Returns:
        str: The report.

    Raises:
        UserError: If the file is not what it should be.
    """
    results: Results = read(path)
    before = targets.markdown(results) if targets and results.preset == 'targets' else ''
    write_markdown(results, Path(out, REPORT), before)
    write_pictures(results, out)
    return to_markdown(results, before)


def plan(args: argparse.Namespace, targets=None) -> list[Case]:
    """The cases that the options stand for; for ``targets`` see :func:`run`.

    Raises:
        UserError: See :func:`run`.
    """
    if args.warm_up < 0:
        raise UserError(f'--warm-up {args.warm_up} is less than none: wanted 0 or more')
    for network in args.network or ():
        if network not in NETWORKS:
            raise UserError(f'no network is named {network!r}: choose from {", ".join(NETWORKS)}')
    if args.preset:
        return _preset(args, targets)
    setup = _setup(args)
    processes = args.processes or 1
    subjects = _subjects(args, processes)
    networks = args.network or ['resnet18']
    if all(subject.config for subject in subjects):
        if args.network:
            raise UserError('--network is for subjects by name: leave it out beside configs alone')
        networks = [None]
    able = MEASURES if processes == 1 else BETWEEN_PROCESSES
    measures = tuple(name for name in able if name in (args.measure or able))
    if not measures:
        raise UserError(
            f'--measure {" ".join(args.measure)} is for one process: leave out --processes, or '
            f'give {" or ".join(able)}'
        )
    over = conditions(args.batch or [8], args.size or [224], args.width or [1.0], args.grid)
    cases: list[Case] = [
        NetworkCase(
            subjects,
            network,
            batch,
            size,
            width,
            args.frozen_stages,
            measures,
            setup,
            accumulate=args.accumulate,
            processes=processes,
        )
        for network in networks
        for batch, size, width in over
    ]
    cases += [
        KernelCase(channels, channels, size, args.released is not None, for_kernels(setup))
        for size in (3, 1)
        for channels in args.kernels or ()
    ]
    return cases


def _subjects(args: argparse.Namespace, processes: int) -> tuple[Subject, ...]:
    """The subjects that the options name, or those that there are by default.

    Raises:
        UserError: If one is named twice, or wants an option that is not there.
    """
    names = list(args.subjects or (DEFAULT_SUBJECTS if processes == 1 else TOGETHER))
    if args.released and not args.subjects:
        names += [f'{RELEASED}DBB', f'{RELEASED}OREPA']
    subjects = tuple(parse(name) for name in names)
    twice = [name for name, count in Counter(s.name for s in subjects).items() if count > 1]
    if twice:
        raise UserError(f'two subjects are named {twice[0]}: give each once')
    if not args.released and any(subject.released for subject in subjects):
        raise UserError('a released subject wants --released PATH, a checkout of the released code')
    if processes == 1 and any(subject.shared_out for subject in subjects):
        raise UserError(f'{SHARED_OUT} has nobody to share with: give --processes 2 or more')
    return subjects


def _setup(args: argparse.Namespace) -> Setup:
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return Setup(
        device=device,
        amp=args.amp,
        channels_last=args.channels_last,
        compile=args.compile,
        optimizer=args.optimizer,
        steps=args.steps or (4 if device.startswith('cuda') else 1),
    )


def _preset(args: argparse.Namespace, targets) -> list[Case]:
    """The cases of a preset.

    Raises:
        UserError: If it chooses for itself what the options say.
    """
    chosen = dict(SUBJECT=args.subjects, kernels=args.kernels, grid=args.grid)
    chosen.update(measure=args.measure)
    if args.preset != 'roofline':
        chosen.update(processes=args.processes, accumulate=args.accumulate > 1)
    if args.preset == 'targets':
        chosen.update(batch=args.batch)
    for name, value in chosen.items():
        if value:
            raise UserError(f'--preset {args.preset} chooses {name} itself: leave it out')
    size, width = (args.size or [224])[0], (args.width or [1.0])[0]
    networks = args.network or (PAPER if args.preset == 'paper' else BOTH)
    if args.preset == 'targets':
        return targets.plan(
            on_cpu=(args.device or 'cpu') == 'cpu',
            on_gpu=torch.cuda.is_available() and args.device != 'cpu',
            with_released=args.released is not None,
            networks=networks,
            size=size,
            width=width,
        )
    if args.preset == 'roofline':
        processes = args.processes or PUBLISHED_PROCESSES
        shared = dict(
            subjects=_subjects(args, processes),
            batch=(args.batch or [PUBLISHED_BATCH])[0],
            measures=('operations',),
            accumulate=args.accumulate,
            processes=processes,
        )
    else:
        shared = dict(subjects=ladder(), batch=(args.batch or [8])[0], measures=('train', 'memory'))
    return [
        NetworkCase(
            network=network,
            size=size,
            width=width,
            setup=_setup(args),
            purpose=args.preset,
            **shared,
        )
        for network in networks
    ]
