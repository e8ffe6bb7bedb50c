"""Training with several processes on this machine: subjects in turn, all processes at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ...errors import UserError
from .operations import count_operations
from .plan import NetworkCase
from .results import Measured
from .steps import TrainStep, images
from .subjects import build
from .timing import Sample, failing_to, run_in_turn

MEASURED, RENDEZVOUS = 'measured.json', 'rendezvous'


def check(case: NetworkCase) -> None:
    """Make sure that each process finds a GPU, where they train on GPUs.

    Raises:
        UserError: If not.
    """
    if case.processes > 1 and case.setup.device.startswith('cuda'):
        found = torch.cuda.device_count()
        if found < case.processes:
            raise UserError(
                f'found {found} GPUs, wanted one for each of {case.processes} processes: give '
                'fewer --processes, or --device cpu'
            )


def measure(
    case: NetworkCase,
    repeats: int,
    warm_up: int,
    released_path: str | None = None,
    threads: int = 1,
) -> list[Measured]:
    """Time training steps of a case with several processes, and count what they send.

    The processes meet over gloo on a CPU and over NCCL on GPUs. They begin each step together, and
    a part takes as long as the slowest of them.

    Args:
        case (NetworkCase): See there.
        repeats (int): Samples.
        warm_up (int): Repeats before the first.
        released_path (str, optional): A checkout of the released code.
        threads (int): Of each process. Defaults to 1.

    Returns:
        list[Measured]: The subjects, with ``seconds`` of their steps, and what was ``sent``.

    Raises:
        RuntimeError: If a step fails in a process; all are ended.
    """
    with TemporaryDirectory() as folder:
        arguments = (folder, threads, case, repeats, warm_up, released_path)
        try:
            mp.spawn(_work, arguments, case.processes)
        except mp.ProcessRaisedException as error:
            # It has the traceback of the process.
            raise RuntimeError(str(error).strip().splitlines()[-1]) from None
        subjects = json.loads(Path(folder, MEASURED).read_text())
    return [Measured(**subject) for subject in subjects]


def _work(
    rank: int,
    folder: str,
    threads: int,
    case: NetworkCase,
    repeats: int,
    warm_up: int,
    released_path: str | None,
) -> None:
    """What each process does; the first one writes what was measured."""
    torch.set_num_threads(threads)
    on_gpu = case.setup.device.startswith('cuda')
    torch.backends.cudnn.benchmark = True
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        'nccl' if on_gpu else 'gloo',
        init_method=Path(folder, RENDEZVOUS).as_uri(),
        rank=rank,
        world_size=case.processes,
    )
    dist.barrier()  # an error of one does not get between those that still connect
    try:
        found = _measure(case, repeats, warm_up, released_path)
        if rank == 0:
            Path(folder, MEASURED).write_text(json.dumps([asdict(subject) for subject in found]))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _measure(case, repeats, warm_up, released_path) -> list[Measured]:
    x = images(case.batch, case.size, case.setup)
    measured = {subject.name: Measured(subject.name, subject.rung) for subject in case.subjects}
    steps: dict[str, TrainStep] = {}
    for subject in case.subjects:
        torch.manual_seed(0)
        with failing_to(measured[subject.name].failures, 'build'):
            network = build(subject, case.network, case.width, case.frozen_stages, released_path)
            steps[subject.name] = TrainStep(
                network, x, case.setup, case.accumulate, subject.shared_out, ddp=True
            )

    def record(name: str, sample: Sample) -> None:
        for what, seconds in sample.items():
            measured[name].record(what, seconds)

    def fail(name: str, reason: str) -> None:
        # Another process may be waiting for this one in the middle of a step.
        raise RuntimeError(f'{name}: {reason}')

    actions = {name: Together(step) for name, step in steps.items()}
    run_in_turn(actions, repeats, warm_up, record, fail)
    for name, step in steps.items():
        measured[name].sent = dict(sent(step))
    return list(measured.values())


class Together:
    """A step that all processes begin together; its sample is that of the slowest of them.

    Args:
        step (TrainStep): Trains with DDP.
    """

    def __init__(self, step: TrainStep):
        self.step = step

    def __call__(self) -> Sample:
        """Seconds by name, the same in all processes."""
        dist.barrier()
        sample = self.step()
        device = self.step.clock.device
        seconds = torch.tensor(list(sample.values()), dtype=torch.float64, device=device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return dict(zip(sample, seconds.tolist()))


def sent(step: TrainStep) -> dict[str, int]:
    """Run a step, and count the bytes of the tensors that it sends, by collective.

    Returns:
        dict[str, int]: Of this process, in one step, as by ``torch.distributed``:
        ``'allreduce'``, ``'broadcast'`` and so on. How often the bytes of one tensor go over a
        wire is the collective's business.
    """

    def run() -> None:
        for _, work in step.parts:
            work()

    return dict(count_operations(run).sent)
