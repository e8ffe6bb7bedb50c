"""Runs a benchmark, case by case and the subjects in turn, and always keeps what was measured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ...convs import OREPAConv2d, switch_to_deploy
from ...engine.squeezed_step import trained_through_branches
from ...errors import UserError
from ..provenance import load, machine, now, software
from . import memory, processes, released
from .counted_step import CountedStep, count_step
from .floor import Floor
from .plan import Case, KernelCase, NetworkCase
from .results import CaseResult, Measured, Results
from .roofline import computed
from .steps import EvalStep, Generation, TrainStep, images
from .subjects import Subject, build
from .timing import Sample, failing_to, run_in_turn

#: The subjects of a kernel.
KERNEL, RELEASED_KERNEL = 'OREPA', 'released-OREPA'
FLOOR = 'floor'

Action = Callable[[], Sample]


class Study:
    """A benchmark.

    Args:
        cases (Sequence[Case]): What to measure.
        repeats (int): Samples of each quantity. Defaults to 10.
        warm_up (int): Repeats before the first. Defaults to 3.
        released_path (str, optional): A checkout of the released code.
        command (str): The command line, to be noted.
        preset (str, optional): Its name, to be noted.
        threads_each (int): Threads of each process where several train. Defaults to 1.

    Raises:
        UserError: If there is no such device or checkout, or too few GPUs for the processes.

    Attributes:
        results (Results): What has been measured so far.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        repeats: int = 10,
        warm_up: int = 3,
        released_path: str | None = None,
        command: str = '',
        preset: str | None = None,
        threads_each: int = 1,
    ):
        if released_path is not None:
            released.check(released_path)
        for device in {case.setup.device for case in cases}:
            use_device(device)
        for case in cases:
            if isinstance(case, NetworkCase):
                processes.check(case)
        self.cases = cases
        self.repeats = repeats
        self.warm_up = warm_up
        self.released_path = released_path
        self.threads_each = threads_each
        self.results = Results(
            command=command,
            machine=machine(),
            software=software(),
            started=now(),
            threads=torch.get_num_threads(),
            repeats=repeats,
            warm_up=warm_up,
            preset=preset,
            load=[load()],
        )

    def run(self, save: Callable[[Results], None] = lambda results: None) -> Results:
        """Measure all cases, with a progress bar on stderr.

        Args:
            save (Callable[[Results], None]): Called with what has been measured so far: after
                each case, and when the benchmark ends, even if it is interrupted.

        Returns:
            Results: See there.
        """
        cudnn, chosen = torch.backends.cudnn, torch.backends.cudnn.benchmark
        cudnn.benchmark = True
        with progress_bar() as bar:
            task = bar.add_task('', total=sum(map(self.runs_of, self.cases)))
            done = 0
            try:
                for case in self.cases:
                    bar.update(task, description=case.label())
                    self.measure(case, lambda: bar.advance(task))
                    self.results.software = software()
                    done += self.runs_of(case)
                    bar.update(task, completed=done)
                    self.results.load.append(load())
                    save(self.results)
                self.results.finished = now()
            except BaseException:
                self.results.interrupted = True
                raise
            finally:
                cudnn.benchmark = chosen
                save(self.results)
        return self.results

    def runs_of(self, case: Case) -> int:
        """How many actions a case has at most."""
        repeats = self.warm_up + self.repeats
        if isinstance(case, KernelCase):
            return repeats * len(kernel_subjects(case))
        runs = dict(train=repeats, memory=1, eval=2 * repeats, operations=1)
        return len(case.subjects) * sum(runs[measure] for measure in case.measures)

    def measure(self, case: Case, tick: Callable[[], None]) -> None:
        """Measure one case, into the results.

        Args:
            case (Case): See there.
            tick (Callable[[], None]): Called after each action.
        """
        torch.manual_seed(0)
        result = CaseResult(case.describe(), [])
        self.results.cases.append(result)
        if isinstance(case, KernelCase):
            self._measure_kernel(case, result, tick)
        else:
            self._measure_network(case, result, tick)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _measure_network(self, case: NetworkCase, result: CaseResult, tick) -> None:
        result.subjects += [Measured(subject.name, subject.rung) for subject in case.subjects]
        if case.processes > 1:
            self._measure_processes(case, result)
        else:
            self._measure_alone(case, result, tick)
        if 'operations' in case.measures:
            self._count(case, result, tick)

    def _measure_processes(self, case: NetworkCase, result: CaseResult) -> None:
        if 'train' in case.measures:
            failures: dict[str, str] = {}
            with failing_to(failures, 'train'):
                result.subjects[:] = processes.measure(
                    case, self.repeats, self.warm_up, self.released_path, self.threads_each
                )
            for subject in result.subjects:
                subject.failures.update(failures)

    def _measure_alone(self, case: NetworkCase, result: CaseResult, tick) -> None:
        if not {'train', 'memory', 'eval'} & set(case.measures):
            return
        networks: dict[str, nn.Module] = {}
        for subject in case.subjects:
            with failing_to(result[subject.name].failures, 'build'):
                networks[subject.name] = self._build(subject, case)
                result[subject.name].trainable = trainable(networks[subject.name])
        x = images(case.batch, case.size, case.setup)
        if {'train', 'memory'} & set(case.measures):
            steps: dict[str, TrainStep] = {}
            for name, network in networks.items():
                with failing_to(result[name].failures, 'train'):
                    steps[name] = TrainStep(network, x, case.setup, case.accumulate)
            if 'train' in case.measures:
                self._in_turn({(name, ''): step for name, step in steps.items()}, result, tick)
            for name in steps if 'memory' in case.measures else ():
                with failing_to(result[name].failures, 'memory'):
                    result[name].bytes = memory.measure(steps[name])
                tick()
            del steps
        if 'eval' in case.measures:
            forms: dict[tuple[str, str], EvalStep] = {}
            for subject in case.subjects:
                name, network = subject.name, networks.get(subject.name)
                if network is None:
                    continue
                # The released blocks fold into the same plain convolutions.
                if subject.released is None:
                    with failing_to(result[name].failures, 'deploy'):
                        deployed = switch_to_deploy(network, inplace=False)
                        forms[name, 'deploy'] = EvalStep(deployed, x, case.setup)
                with failing_to(result[name].failures, 'eval'):
                    forms[name, 'eval'] = EvalStep(network, x, case.setup)
            self._in_turn(forms, result, tick)

    def _count(self, case: NetworkCase, result: CaseResult, tick) -> None:
        for subject in case.subjects:
            measured = result[subject.name]
            with failing_to(measured.failures, 'operations'):
                steps = count_step(partial(self._build, subject, case), case, subject.shared_out)
                measured.operations = totals(steps)
                measured.computed = computed(steps, case.accumulate, case.processes)
            tick()

    def _build(self, subject: Subject, case: NetworkCase) -> nn.Module:
        return build(subject, case.network, case.width, case.frozen_stages, self.released_path)

    def _measure_kernel(self, case: KernelCase, result: CaseResult, tick) -> None:
        shape = case.in_channels, case.out_channels, case.kernel_size
        padding = case.kernel_size // 2
        block = OREPAConv2d(*shape, padding=padding, bias=False)
        actions: dict[tuple[str, str], Action] = {}
        for name in kernel_subjects(case):
            result.subjects.append(Measured(name))
            with failing_to(result[name].failures, 'build'):
                other = block
                if name == RELEASED_KERNEL:
                    other = released.build_block(self.released_path, *shape)
                kind = Floor if name == FLOOR else Generation
                actions[name, ''] = kind(other, case.setup)
        result[KERNEL].trainable = trainable(block)
        self._in_turn(actions, result, tick)

    def _in_turn(self, actions: Mapping[tuple[str, str], Action], result: CaseResult, tick) -> None:
        """Run actions in turn; their names are a subject's and what its ``step`` is to be called.

        An empty second name leaves all quantities as they are called.
        """

        def record(key: tuple[str, str], sample: Sample) -> None:
            name, quantity = key
            if quantity:
                sample = {quantity: sample['step']}
            for what, seconds in sample.items():
                result[name].record(what, seconds)

        def fail(key: tuple[str, str], reason: str) -> None:
            result[key[0]].failures[key[1] or 'train'] = reason

        run_in_turn(actions, self.repeats, self.warm_up, record, fail, tick)


def kernel_subjects(case: KernelCase) -> list[str]:
    """The subjects of a kernel, the floor first."""
    return [FLOOR, KERNEL, *[RELEASED_KERNEL] * case.released]


def totals(steps: Sequence[CountedStep]) -> dict[str, int]:
    """What a training step hands to the device, the optimizer's own step left out.

    Args:
        steps (Sequence[CountedStep]): Of the processes, where they do not all do the same.

    Returns:
        dict[str, int]: Numbers of operations, ``'network'``, forward and backward pass with what
        is generated within them, and ``'update'``, pulling back and generating in squeezed
        training; ``'flops'`` and ``'bytes'``, floating-point work and memory traffic of both. Of
        the process with most of each.
    """

    def counts(step: CountedStep) -> dict[str, int]:
        both = step.without_optimizer
        network = step.parts['forward'].total + step.parts['backward'].total
        return dict(
            network=network, update=both.total - network, flops=both.flops, bytes=both.bytes
        )

    counted = [counts(step) for step in steps]
    return {name: max(found[name] for found in counted) for name in counted[0]}


def trainable(network: nn.Module) -> int:
    """The number of parameters that are trained: in squeezed training the branches', not leaves."""
    with trained_through_branches(network):
        return sum(p.numel() for p in network.parameters() if p.requires_grad)


def use_device(device: str) -> None:
    """Make sure that a device is there; of several GPUs it becomes the current one.

    Raises:
        UserError: If not.
    """
    try:
        torch.zeros(1, device=device)
        if torch.device(device).index is not None and device.startswith('cuda'):
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'device {device} cannot be used: {reason}; choose another --device'
        ) from None


def progress_bar() -> Progress:
    """A bar on stderr, which is gone when the work is done."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
