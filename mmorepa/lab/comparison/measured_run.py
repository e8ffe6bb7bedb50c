"""One training of one config with one seed: what it learned, and what it cost.

It runs in a process of its own, so that the peak memory is this run's and a crash ends nothing
else.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint

from ...checkpoints import convert
from ...engine.run import load_config, test, training_runner
from ...errors import UserError
from ...writing import alone_in, write_text
from ..provenance import load, machine, now, software
from ..scaffold import reason_of

#: The record of a finished run, in the run's folder.
RESULT = 'result.json'
#: What a run printed.
LOG = 'run.log'

SECONDS_BETWEEN_REPORTS = 1

#: Iterations left out of a run's step time, in which caches fill and memory is first asked for.
WARM_UP = 10
#: How many of the others a record keeps.
STEPS_KEPT = 21


@dataclass(frozen=True)
class Job:
    """One run to be done.

    Attributes:
        config (str): The config file.
        name (str): What to call it.
        seed (int): Seed of everything random.
        folder (str): Where the run's log, checkpoints and record go.
        settings (str): What the run depends on beside the seed, as a digest.
        cfg_options (dict): Fields of the config to change, dotted keys.
        deterministic (bool): Use deterministic algorithms alone. On a CPU a run with one number
            of threads repeats itself without that.
    """

    config: str
    name: str
    seed: int
    folder: str
    settings: str = ''
    cfg_options: dict = field(default_factory=dict)
    deterministic: bool = False


def start(job: Job, report: Connection) -> None:
    """Be the process of a run: do it, with what it prints going to its log.

    Args:
        job (Job): The run.
        report (Connection): Gets the part of the training that is done, 0 to 1, now and then; in
            the end, if the run fails, one line that says why.
    """
    with open(Path(job.folder, LOG), 'ab') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        # Two commands with one --out would mix their checkpoints.
        with alone_in(job.folder, '--out'):
            os.truncate(1, 0)  # what an earlier run printed
            run(job, report.send)
    except Exception as error:
        traceback.print_exc()
        report.send(reason_of(error))
        sys.exit(1)


def run(job: Job, report=lambda done: None) -> dict:
    """Train, test, convert, test again, and write down what was found, whole or not at all.

    Args:
        job (Job): The run.
        report (Callable[[float], None]): Called with the part of the training that is done, 0 to
            1, about once a second.

    Returns:
        dict: What is in the record: ``metrics`` and ``deploy_metrics`` of the test set,
        the number of ``iterations`` and ``step_seconds`` that they took (data loading left out;
        see :func:`spread`), ``peak_bytes`` of memory from the first iteration to the last and
        ``start_bytes`` when the first began, ``parameters`` of the training and the deploy
        form, ``relative`` difference of both forms on a probe image, ``train_seconds``, ``load``
        of the machine at the end of training, and ``machine`` and ``software``, in words.

    Raises:
        UserError: If the config cannot be read, has nothing to test with, trains no iteration or
            saves no checkpoint, testing gives no metric, or the model does not convert.
    """
    if job.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    folder = Path(job.folder)
    cfg = load_config(job.config, folder, job.cfg_options)
    cfg.randomness = dict(seed=job.seed, deterministic=job.deterministic)
    cfg.resume = False
    # What would fail after hours of training is better said before.
    for name in ('train_dataloader', 'test_dataloader', 'test_evaluator'):
        if cfg.get(name) is None:
            raise UserError(f'{job.config} has no {name}: wanted one to train and one to test with')
    # Left by a run that was interrupted, it would name a checkpoint of that one.
    (folder / 'last_checkpoint').unlink(missing_ok=True)
    timer = StepTimer(report)
    # A seed is the same data in the same order, augmented alike, whatever a model draws.
    with training_runner(cfg) as runner:
        timer.attach(runner)
        began = time.perf_counter()
        runner.train()
        train_seconds = time.perf_counter() - began
        peak = peak_bytes()
        load_then = load()
    if not timer.seconds:
        raise UserError(f'{job.config} trained no iteration: give it more in train_cfg')
    del runner  # testing builds its own

    checkpoint = find_latest_checkpoint(str(folder))
    if checkpoint is None:
        raise UserError(f'{job.config} saves no checkpoint: wanted default_hooks.checkpoint')
    metrics = test(cfg, checkpoint)
    if not any(isinstance(value, float) for value in metrics.values()):
        # mmdet's do that where nothing was detected.
        raise UserError(
            f'{job.config}: testing gave no metric that is a number; train it for longer'
        )
    converted = convert(cfg, checkpoint, folder / 'deploy.pth', force=True)
    deploy_metrics = test(cfg, converted.out)

    record = dict(
        config=job.name,
        seed=job.seed,
        deterministic=job.deterministic,
        settings=job.settings,
        cfg_options={key: repr(value) for key, value in job.cfg_options.items()},
        metrics=metrics,
        deploy_metrics=deploy_metrics,
        relative=converted.agreement.relative,
        parameters=dict(zip(('training', 'deploy'), converted.parameters)),
        iterations=len(timer.seconds),
        step_seconds=[round(seconds, 6) for seconds in spread(timer.seconds)],
        train_seconds=round(train_seconds, 3),
        peak_bytes=peak,
        start_bytes=timer.start_bytes,
        load=load_then,
        machine=machine(),
        software=software(),
        finished=now(),
    )
    write_text(json.dumps(record) + '\n', folder / RESULT)
    return record


def spread(seconds: Sequence[float]) -> list[float]:
    """A few iterations that stand for all, so that a record stays small.

    Args:
        seconds (Sequence[float]): Of every iteration, in their order.

    Returns:
        list[float]: From the fastest to the slowest, at most :data:`STEPS_KEPT` at even ranks; the
        first :data:`WARM_UP` iterations, or the first half of a short run, are left out.
    """
    settled = sorted(seconds[min(WARM_UP, len(seconds) // 2) :])
    kept = min(STEPS_KEPT, len(settled))
    last = len(settled) - 1
    return [settled[round(i * last / max(kept - 1, 1))] for i in range(kept)]


class StepTimer:
    """Times training iterations: a batch preprocessed, forward, backward, the optimizer's step.

    Loading the batch and what other hooks do is left out.

    Args:
        report (Callable[[float], None]): Called with the part of the training that is done, 0 to
            1, about once a second.

    Attributes:
        seconds (list[float]): What each iteration took.
        start_bytes (int): Memory when the first began.
    """

    def __init__(self, report):
        self.seconds = []
        self.start_bytes = 0
        self._report = report
        self._began = self._reported = 0.0

    def attach(self, runner: Runner) -> None:
        """Make a Runner call it next to the step, all other hooks around it."""
        runner.register_hook(_Before(self), 'LOWEST')
        runner.register_hook(_After(self), 'HIGHEST')

    def begin(self) -> None:
        """An iteration begins."""
        if not self.seconds:
            reset_peak()
            self.start_bytes = peak_bytes()
        _wait_for_gpu()
        self._began = time.perf_counter()

    def end(self, done: float) -> None:
        """An iteration ended; with it ``done`` of the training, 0 to 1."""
        _wait_for_gpu()
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        if now - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._report(done)


class _Before(Hook):
    def __init__(self, timer: StepTimer):
        self.timer = timer

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.timer.begin()


class _After(Hook):
    def __init__(self, timer: StepTimer):
        self.timer = timer

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.timer.end((runner.iter + 1) / runner.max_iters)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Let :func:`peak_bytes` begin anew: loading the data takes more than training often does.

    On a CPU only Linux can.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def peak_bytes() -> int:
    """The most memory this process has had: allocated on the GPU if there is one, else resident.

    Processes that load data are not counted.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        # Not getrusage, which on Linux begins with what the parent process had.
        status = Path('/proc/self/status').read_text()
        (line,) = (line for line in status.splitlines() if line.startswith('VmHWM:'))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else peak * 1024
