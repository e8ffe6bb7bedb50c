"""The project's own targets: what has to be measured for them, and whether they are met.

``python tools/benchmark.py --preset targets`` measures all of them that the machine can. An
installed package does not have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from mmorepa.lab.benchmark.measuring import FLOOR, RELEASED_KERNEL
from mmorepa.lab.benchmark.plan import Case, KernelCase, NetworkCase, Setup, for_kernels
from mmorepa.lab.benchmark.results import CaseResult, Results
from mmorepa.lab.benchmark.spread import Spread, spread
from mmorepa.lab.benchmark.subjects import RELEASED, SHARED_OUT, parse
from mmorepa.lab.benchmark.tables import NOTHING, condition, section, times
from mmorepa.lab.scaffold import Column, markdown_table

NETWORKS = ('resnet18', 'resnet50')
NONE, OREPA, SQUEEZED = 'none', 'OREPA', 'OREPA-squeezed'

#: Input and output channels of the 3 x 3 and 1 x 1 kernels; and the stem's I, O and k.
CHANNELS = (64, 128, 256, 512)
STEM = (3, 64, 7)

CPU_BATCH = 8
GPU_BATCHES = (64, 256)
MEMORY_BATCH = 64
ALL_STAGES = 4
ACCUMULATE = 4
PROCESSES = 2

#: What the cases are for.
STEP, GPU_STEP, FROZEN, MEMORY, GENERATION = 'step', 'GPU step', 'frozen', 'memory', 'generation'
ACCUMULATED, TOGETHER = 'accumulated', 'together'


def plan(
    on_cpu: bool = True,
    on_gpu: bool = False,
    with_released: bool = False,
    networks: Sequence[str] = NETWORKS,
    size: int = 224,
    width: float = 1.0,
    channels: Sequence[int] = CHANNELS,
) -> list[Case]:
    """What has to be measured.

    Args:
        on_cpu (bool): The rows of a CPU; those that need no GPU are measured there. Defaults to
            True.
        on_gpu (bool): The rows of a GPU. Defaults to False.
        with_released (bool): Measure the released code as well. Defaults to False.
        networks (Sequence[str]): The targets are for :data:`NETWORKS`.
        size (int): Pixels; the targets are for 224.
        width (float): Factor on all channels; the targets are for 1.
        channels (Sequence[int]): Of the kernels; the target is for 512.

    Returns:
        list[Case]: Kernels first, then network by network.
    """
    cpu, gpu = Setup('cpu'), Setup('cuda', amp=True, channels_last=True, steps=4)
    anywhere = cpu if on_cpu else gpu
    pair = (parse(NONE), parse(OREPA))
    three = (*pair, parse(SQUEEZED))
    subjects = (*three, parse(RELEASED + OREPA)) if with_released else three
    shapes = [*[(c, c, k) for k in (3, 1) for c in channels], STEM]
    cases: list[Case] = [
        KernelCase(*shape, with_released, for_kernels(anywhere), GENERATION) for shape in shapes
    ]
    everything = ('train', 'memory', 'eval')
    wanted: list[dict] = []
    if on_cpu:
        base = dict(subjects=three, batch=CPU_BATCH, measures=('train',), setup=cpu)
        wanted += [
            dict(base, subjects=subjects, measures=everything, purpose=STEP),
            dict(base, purpose=ACCUMULATED, accumulate=ACCUMULATE),
            dict(
                base,
                subjects=(*three, parse(SHARED_OUT)),
                purpose=TOGETHER,
                processes=PROCESSES,
            ),
        ]
    for batch in GPU_BATCHES if on_gpu else ():
        wanted.append(
            dict(subjects=subjects, batch=batch, measures=everything, setup=gpu, purpose=GPU_STEP)
        )
    batch = CPU_BATCH if on_cpu else GPU_BATCHES[0]
    base = dict(setup=anywhere, batch=batch, measures=('train',))
    wanted += [
        dict(base, subjects=pair, purpose=FROZEN, frozen_stages=frozen)
        for frozen in (ALL_STAGES, 2)
    ]
    base = dict(setup=anywhere, batch=MEMORY_BATCH, measures=('memory',))
    wanted.append(dict(base, subjects=subjects, purpose=MEMORY))
    cases += [
        NetworkCase(network=network, size=size, width=width, **condition)
        for network in networks
        for condition in wanted
    ]
    return cases


@dataclass(frozen=True)
class Target:
    """A ratio, and what it may be at most.

    Attributes:
        what (str): What is compared with what.
        at_most (float, optional): None where no target was set, the ratio being there for
            comparison.
        case (dict): The fields that tell its case from others.
        ratio (Callable[[CaseResult], Spread | None]): The ratio in that case.
    """

    what: str
    at_most: float | None
    case: dict
    ratio: Callable[[CaseResult], Spread | None] = field(repr=False)


def step(result: CaseResult, subject: str = OREPA, over: str = NONE) -> Spread | None:
    """A training step of a subject over another's."""
    return result[subject].ratio(result[over])


def sent(result: CaseResult, subject: str) -> Spread | None:
    """What a process sends in a step over what it sends without re-parameterisation."""
    return _quotient(*(sum(result[name].sent.values()) or None for name in (subject, NONE)))


def generation(result: CaseResult, subject: str = OREPA) -> Spread | None:
    """Generating a kernel, forward and backward, over the floor."""
    return result[subject].ratio(result[FLOOR])


def evaluation(result: CaseResult) -> Spread | None:
    """An evaluation step over one without re-parameterisation, BatchNorms folded in neither."""
    return result[OREPA].ratio(result[NONE], 'eval')


def kept(result: CaseResult, subject: str = OREPA) -> Spread | None:
    """What a step keeps beside parameters, gradients and optimizer state, a subject over plain.

    On a GPU by the peak of its allocator, on a CPU by what autograd saves.
    """
    ours, plain = result[subject], result[NONE]
    by_peak = ours.peak_rest_bytes, plain.peak_rest_bytes
    counted = ours.saved_bytes, plain.saved_bytes
    return _quotient(*(counted if None in by_peak else by_peak))


def activations(result: CaseResult) -> Spread | None:
    """Saved activations alone, kernels left out, OREPA over plain."""
    return _quotient(*(result[name].bytes.get('activations') for name in (OREPA, NONE)))


def _quotient(value: float | None, other: float | None) -> Spread | None:
    return None if value is None or other is None else spread([value / other])


def _targets() -> list[Target]:
    def each(what: str, targets: Sequence[float | None], ratio, **case) -> list[Target]:
        return [
            Target(what, at_most, dict(case, network=network), ratio)
            for network, at_most in zip(NETWORKS, targets)
        ]

    no_target = (None, None)
    on_cpu = dict(purpose=STEP, batch=CPU_BATCH)
    found = each('training step: OREPA over plain', (1.40, 1.35), step, **on_cpu)
    for name in (SQUEEZED, RELEASED + OREPA):
        what = f'training step: {name} over plain'
        found += each(what, no_target, partial(step, subject=name), **on_cpu)
    what = f'training step: {SQUEEZED} over OREPA'
    found += each(what, (1.00, 1.00), partial(step, subject=SQUEEZED, over=OREPA), **on_cpu)
    accumulated = {OREPA: no_target, SQUEEZED: (1.15, None)}
    for name, targets in accumulated.items():
        what = f'training step of {ACCUMULATE} micro-batches: {name} over plain'
        found += each(what, targets, partial(step, subject=name), purpose=ACCUMULATED)
    together = {OREPA: no_target, SQUEEZED: no_target, SHARED_OUT: (1.20, 1.12)}
    for name, targets in together.items():
        what = f'training step of {PROCESSES} processes: {name} over plain'
        found += each(what, targets, partial(step, subject=name), purpose=TOGETHER)
    for name in together:
        what = f'bytes sent by {PROCESSES} processes: {name} over plain'
        found += each(what, no_target, partial(sent, subject=name), purpose=TOGETHER)
    for size in (3, 1):
        for channels in CHANNELS:
            case = dict(
                purpose=GENERATION, kernel_size=size, in_channels=channels, out_channels=channels
            )
            at_most = 1.3 if (channels, size) == (512, 3) else None
            found.append(Target('kernel generation over its floor', at_most, case, generation))
            if (channels, size) == (512, 3):
                what = f'kernel generation, {RELEASED_KERNEL}, over the floor'
                of_released = partial(generation, subject=RELEASED_KERNEL)
                found.append(Target(what, None, case, of_released))
    stem = dict(purpose=GENERATION, kernel_size=STEM[2])
    found.append(Target('kernel generation over its floor, stem', None, stem, generation))
    for batch, targets in zip(GPU_BATCHES, ((1.12, 1.08), (1.05, 1.04))):
        for name in (OREPA, SQUEEZED):
            what = f'training step on a GPU: {name} over plain'
            ratio = partial(step, subject=name)
            found += each(what, targets, ratio, purpose=GPU_STEP, batch=batch)
    at_64 = dict(purpose=MEMORY, batch=MEMORY_BATCH)
    for name, at_most in {OREPA: 1.02, SQUEEZED: 1.00}.items():
        what = f'memory less parameters, gradients, optimizer state: {name} over plain'
        found += each(what, (at_most, at_most), partial(kept, subject=name), **at_64)
    found += each('activations alone: OREPA over plain', no_target, activations, **at_64)
    what = 'evaluation step in training form: OREPA over plain'
    found += each(what, (1.02, 1.02), evaluation, **on_cpu)
    what = 'training step, all stages frozen: OREPA over plain'
    found += each(what, (1.00, 1.00), step, purpose=FROZEN, frozen_stages=ALL_STAGES)
    what = 'training step, two stages frozen: OREPA over plain'
    found += each(what, no_target, step, purpose=FROZEN, frozen_stages=2)
    return found


TARGETS: list[Target] = _targets()


@dataclass(frozen=True)
class Row:
    """A target and what was found.

    Attributes:
        target (Target): See there.
        result (CaseResult, optional): Its case; None if that was not measured.
        found (Spread, optional): The ratio; None if it was not measured.
    """

    target: Target
    result: CaseResult | None
    found: Spread | None

    @property
    def is_met(self) -> bool | None:
        """Whether the median, rounded to two decimals, is within the target; None without one."""
        if self.target.at_most is None or self.found is None:
            return None
        return round(self.found.median, 2) <= self.target.at_most


def rows(results: Results) -> list[Row]:
    """All targets; those without one of their own only where they were measured."""
    found = []
    for target in TARGETS:
        matching = [
            result
            for result in results.cases
            if all(result.case.get(key) == value for key, value in target.case.items())
        ]
        result = matching[0] if matching else None
        ratio = target.ratio(result) if result else None
        if ratio is not None or target.at_most is not None:
            found.append(Row(target, result, ratio))
    return found


def markdown(results: Results) -> str:
    """What the targets are and what was found, as a section of a report."""
    met = {True: 'met', False: '**not met**', None: ''}
    columns = [
        Column('what', lambda row: row.target.what, left=True),
        Column(
            'where',
            lambda row: condition(row.result) if row.result else wanted(row.target),
            left=True,
        ),
        Column('target', lambda row: format_target(row.target)),
        Column('found (quartiles)', lambda row: times(row.found) if row.found else 'not measured'),
        Column('', lambda row: met[row.is_met]),
    ]
    return section('Targets', markdown_table(columns, rows(results)))


def format_target(target: Target) -> str:
    """What a ratio may be at most."""
    return NOTHING if target.at_most is None else f'≤ {target.at_most:.2f}'


def wanted(target: Target) -> str:
    """The condition of a target that was not measured."""
    case = target.case
    if 'kernel_size' in case:
        return f'{case["kernel_size"]}×{case["kernel_size"]}, {case["in_channels"]} channels'
    text = case['network'] + (f', batch {case["batch"]}' if 'batch' in case else '')
    return f'{text}, no GPU here' if case['purpose'] == GPU_STEP else text
