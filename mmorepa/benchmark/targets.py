"""The project's targets: what has to be measured for them, and whether they are met.

``python tools/benchmark.py --preset targets`` measures all of them that the machine can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from .plan import Case, KernelCase, NetworkCase, Setup, for_kernels
from .results import CaseResult, Results
from .spread import Spread, spread
from .study import FLOOR, RELEASED_KERNEL
from .subjects import RELEASED, VARIANTS, parse

NETWORKS = ('resnet18', 'resnet50')
NONE, OREPA = 'none', 'OREPA'

#: Input and output channels of the 3 x 3 and 1 x 1 kernels; and the stem's I, O and k.
CHANNELS = (64, 128, 256, 512)
STEM = (3, 64, 7)

CPU_BATCH = 8
GPU_BATCHES = (64, 256)
MEMORY_BATCH = 64
ALL_STAGES = 4

#: What the cases are for.
STEP, GPU_STEP, FROZEN, MEMORY, GENERATION = 'step', 'GPU step', 'frozen', 'memory', 'generation'


def plan(
    on_cpu: bool = True,
    on_gpu: bool = False,
    with_released: bool = False,
    networks: Sequence[str] = NETWORKS,
    size: int = 224,
    width: float = 1.0,
    channels: Sequence[int] = CHANNELS,
    variants: Sequence[str] = tuple(VARIANTS),
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
        variants (Sequence[str]): Of :data:`mmorepa.benchmark.subjects.VARIANTS`, those whose steps
            are measured. Defaults to all.

    Returns:
        list[Case]: Kernels first, then network by network.
    """
    cpu, gpu = Setup('cpu'), Setup('cuda', amp=True, channels_last=True, steps=4)
    anywhere = cpu if on_cpu else gpu
    pair = (parse(NONE), parse(OREPA))
    subjects = (*pair, parse(RELEASED + OREPA)) if with_released else pair
    in_steps = (*subjects, *[parse(name) for name in variants])
    shapes = [*[(c, c, k) for k in (3, 1) for c in channels], STEM]
    cases: list[Case] = [
        KernelCase(*shape, with_released, for_kernels(anywhere), GENERATION) for shape in shapes
    ]
    for network in networks:
        # Subjects, batch, measures, setup, purpose, frozen stages.
        wanted = []
        if on_cpu:
            wanted.append((in_steps, CPU_BATCH, ('train', 'memory', 'eval'), cpu, STEP, -1))
        for batch in GPU_BATCHES if on_gpu else ():
            wanted.append((in_steps, batch, ('train', 'memory', 'eval'), gpu, GPU_STEP, -1))
        for frozen in (ALL_STAGES, 2):
            batch = CPU_BATCH if on_cpu else GPU_BATCHES[0]
            wanted.append((pair, batch, ('train',), anywhere, FROZEN, frozen))
        wanted.append((subjects, MEMORY_BATCH, ('memory',), anywhere, MEMORY, -1))
        for who, batch, measures, setup, purpose, frozen in wanted:
            cases.append(
                NetworkCase(who, network, batch, size, width, frozen, measures, setup, purpose)
            )
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


def step(result: CaseResult, subject: str = OREPA) -> Spread | None:
    """A training step of a subject over one without re-parameterisation."""
    return result[subject].ratio(result[NONE])


def generation(result: CaseResult, subject: str = OREPA) -> Spread | None:
    """Generating a kernel, forward and backward, over the floor."""
    return result[subject].ratio(result[FLOOR])


def evaluation(result: CaseResult) -> Spread | None:
    """An evaluation step in training form over one in deploy form."""
    return result[OREPA].ratio(result[OREPA], 'eval', 'deploy')


def kept(result: CaseResult) -> Spread | None:
    """What a step keeps beside parameters, gradients and optimizer state, OREPA over none.

    On a GPU by the peak of its allocator, on a CPU by what autograd saves.
    """
    ours, plain = result[OREPA], result[NONE]
    by_peak = ours.peak_rest_bytes, plain.peak_rest_bytes
    counted = ours.saved_bytes, plain.saved_bytes
    return _quotient(*(counted if None in by_peak else by_peak))


def activations(result: CaseResult) -> Spread | None:
    """Saved activations alone, kernels left out, OREPA over none."""
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
    found = each('training step: OREPA over none', (1.40, 1.35), step, **on_cpu)
    for name in VARIANTS:
        what = f'training step: {name} over none'
        found += each(what, no_target, partial(step, subject=name), **on_cpu)
    of_released = partial(step, subject=RELEASED + OREPA)
    found += each('training step: released code over none', no_target, of_released, **on_cpu)
    for size in (3, 1):
        for channels in CHANNELS:
            case = dict(
                purpose=GENERATION, kernel_size=size, in_channels=channels, out_channels=channels
            )
            at_most = 1.3 if (channels, size) == (512, 3) else None
            found.append(Target('kernel generation over its floor', at_most, case, generation))
            if (channels, size) == (512, 3):
                for name in (*VARIANTS, RELEASED_KERNEL):
                    what = f'kernel generation, {name}, over the floor of float32'
                    found.append(Target(what, None, case, partial(generation, subject=name)))
    stem = dict(purpose=GENERATION, kernel_size=STEM[2])
    found.append(Target('kernel generation over its floor, stem', None, stem, generation))
    for batch, targets in zip(GPU_BATCHES, ((1.12, 1.08), (1.05, 1.04))):
        on_gpu = dict(purpose=GPU_STEP, batch=batch)
        found += each('training step on a GPU: OREPA over none', targets, step, **on_gpu)
        for name in VARIANTS:
            what = f'training step on a GPU: {name} over none'
            found += each(what, no_target, partial(step, subject=name), **on_gpu)
    at_64 = dict(purpose=MEMORY, batch=MEMORY_BATCH)
    what = 'memory less parameters, gradients, optimizer state: OREPA over none'
    found += each(what, (1.02, 1.02), kept, **at_64)
    found += each('activations alone: OREPA over none', no_target, activations, **at_64)
    what = 'evaluation step: training form over deploy form'
    found += each(what, (1.02, 1.02), evaluation, **on_cpu)
    what = 'training step, all stages frozen: OREPA over none'
    found += each(what, (1.00, 1.00), step, purpose=FROZEN, frozen_stages=ALL_STAGES)
    what = 'training step, two stages frozen: OREPA over none'
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
