"""What is to be measured, and under which conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import ClassVar

from .subjects import Subject

#: What can be measured of a network.
MEASURES = ('train', 'memory', 'eval', 'operations')

#: Those that can be measured where several processes train.
BETWEEN_PROCESSES = ('train', 'operations')


@dataclass(frozen=True)
class Setup:
    """How the computing is done.

    Attributes:
        device (str): As torch names it.
        amp (bool): Automatic mixed precision: float16 with a gradient scaler on a GPU, bfloat16
            on a CPU.
        channels_last (bool): Memory format of network and images.
        compile (bool): ``torch.compile`` of the network.
        optimizer (str): Which implementation of SGD: ``'default'`` leaves it to torch,
            ``'foreach'`` and ``'fused'`` name it.
        steps (int): Steps run and timed together in each repeat. A GPU is given the next one
            before it has done the last, as in training.
    """

    device: str = 'cpu'
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    optimizer: str = 'default'
    steps: int = 1

    def __str__(self) -> str:
        words = [self.device]
        words += ['AMP'] * self.amp
        words += ['channels_last'] * self.channels_last
        words += ['compiled'] * self.compile
        if self.optimizer != 'default':
            words.append(f'{self.optimizer} SGD')
        return ', '.join(words)


class _Condition:
    """What both kinds of cases can say of themselves."""

    kind: ClassVar[str]

    def describe(self) -> dict:
        """The condition in plain values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        for who in ('subjects', 'released'):
            found.pop(who, None)
        if 'measures' in found:
            found['measures'] = list(found['measures'])
        return dict(kind=self.kind, **found | dict(setup=asdict(self.setup)))

    def label(self) -> str:
        """The condition in words."""
        return label(self.describe())


@dataclass(frozen=True)
class NetworkCase(_Condition):
    """Subjects to be compared in one network under one condition.

    Attributes:
        subjects (tuple[Subject, ...]): The others are compared with the first.
        network (str, optional): A name of :data:`mmorepa.lab.benchmark.subjects.NETWORKS`; None if
            all subjects are configs.
        batch (int): N, images a micro-batch of each process.
        size (int): Height and width in pixels.
        width (float): Factor on all channels.
        frozen_stages (int): As of the backbones.
        measures (tuple[str, ...]): Of :data:`MEASURES`.
        setup (Setup): See there.
        purpose (str): What a preset wants it for.
        accumulate (int): Micro-batches a step.
        processes (int): How many train together, each with its own batch. With several of them
            only :data:`BETWEEN_PROCESSES` are measured.
    """

    subjects: tuple[Subject, ...]
    network: str | None
    batch: int
    size: int
    width: float = 1.0
    frozen_stages: int = -1
    measures: tuple[str, ...] = MEASURES
    setup: Setup = Setup()
    purpose: str = ''
    accumulate: int = 1
    processes: int = 1

    kind = 'network'


@dataclass(frozen=True)
class KernelCase(_Condition):
    """One kernel to be generated, against the floor under it.

    Attributes:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k.
        released (bool): Whether to measure the released block as well; g = 1.
        setup (Setup): See there.
        purpose (str): What a preset wants it for.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    released: bool = False
    setup: Setup = Setup()
    purpose: str = ''

    kind = 'kernel'


Case = NetworkCase | KernelCase


def for_kernels(setup: Setup) -> Setup:
    """The setup of kernels beside networks of ``setup``: in float32, several runs in a repeat.

    A small kernel is made in less than a millisecond.
    """
    return Setup(device=setup.device, optimizer=setup.optimizer, steps=max(setup.steps, 5))


def label(case: dict) -> str:
    """A condition in words, out of its plain values.

    Example:
        >>> label(dict(kind='kernel', in_channels=64, out_channels=128, kernel_size=3))
        '3×3, 64 → 128'
    """
    if case['kind'] == 'kernel':
        size = case['kernel_size']
        return f'{size}×{size}, {case["in_channels"]} → {case["out_channels"]}'
    text = f'{case["network"] or "configs"}, {case["batch"]} × {case["size"]}²'
    if case['width'] != 1:
        text += f', width ×{case["width"]:g}'
    if case['frozen_stages'] >= 0:
        text += f', {case["frozen_stages"]} stages frozen'
    if case['accumulate'] > 1:
        text += f', {case["accumulate"]} micro-batches'
    if case['processes'] > 1:
        text += f', {case["processes"]} processes'
    return text


def conditions(
    batches: Sequence[int],
    sizes: Sequence[int],
    widths: Sequence[float],
    grid: bool = False,
) -> list[tuple[int, int, float]]:
    """Batch, size and width of each condition.

    Args:
        batches (Sequence[int]): Images a step.
        sizes (Sequence[int]): Pixels.
        widths (Sequence[float]): Factors on all channels.
        grid (bool): False varies one of them at a time, the others staying at their first value;
            True measures all combinations.

    Returns:
        list[tuple[int, int, float]]: Without repetition, the first values first.
    """
    combined = product(dict.fromkeys(batches), dict.fromkeys(sizes), dict.fromkeys(widths))
    first = (batches[0], sizes[0], widths[0])
    return [
        condition
        for condition in combined
        if grid or sum(a != b for a, b in zip(condition, first)) <= 1
    ]


_DBB = ('original', 'average', 'pointwise_kxk', 'pointwise')
_BLOCKS_ALONE = 'layer'  # found in the names of all convolutions but the stem's
#: The paper's comparison of what each component costs: what a rung has in its blocks.
LADDER: dict[str, dict] = {
    '+DBB': dict(branches=_DBB, where=_BLOCKS_ALONE),
    '+freq. prior': dict(branches=(*_DBB, 'prior'), where=_BLOCKS_ALONE),
    '+linear DW': dict(branches=(*_DBB, 'prior', 'separable'), where=_BLOCKS_ALONE),
    '+linear stem': dict(),
}


def ladder() -> tuple[Subject, ...]:
    """The subjects of the paper's bars of training memory and training time.

    Each rung has the components of those before it, as several convolutions over the feature map
    (offline) and as one (online). Branches have no BatchNorms of their own in either; the paper's
    offline bars seem to have them, as the subject DBB has.
    """
    subjects = [Subject('none', rung='base')]
    for rung, options in LADDER.items():
        for mode in ('offline', 'online'):
            reparam = dict(type='OREPA', mode=mode, **options)
            subjects.append(Subject(f'{mode} {rung}', reparam, rung=rung))
    return tuple(subjects)
