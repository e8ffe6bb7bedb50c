"""What a training step would cost on a GPU that is not there: computed, not measured.

Each operation takes a launch, and then as long as its floating-point work or its memory traffic
takes at the speeds of the datasheet, whichever is longer; operations come one after the other.
Between processes, gradients are reduced behind the backward pass, as DDP does, and only what takes
longer than that counts; all else that is sent counts in full. Nothing is fitted: real kernels reach
some two thirds of a datasheet's speeds, so seconds come out too low, and nearly alike for what is
compared. :func:`checks` says by how much, for what the paper published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .counted_step import CountedStep
from .operations import Operation
from .results import CaseResult

#: Seconds to hand over one operation from Python. It is the host's, and in no datasheet: some 5 to
#: 15 microseconds have been seen of eager PyTorch.
LAUNCH = 10e-6


@dataclass(frozen=True)
class GPU:
    """Speeds out of a datasheet.

    Attributes:
        name (str): Its name, and how it computes.
        convolution (float): FLOP/s of convolutions.
        product (float): FLOP/s of matrix products.
        memory (float): Bytes/s.
        link (float): Bytes/s to other GPUs, in one direction.
    """

    name: str
    convolution: float
    product: float
    memory: float
    link: float


#: By torch's default convolutions are in TF32 where the GPU has it, and matrix products in float32.
#: Tensor cores without sparsity; of NVLink half the bandwidth that a datasheet gives for both
#: directions.
GPUS = (
    # NVIDIA V100 datasheet (V100 SXM2, 32 GB).
    GPU('V100', 15.7e12, 15.7e12, 0.9e12, 0.15e12),
    # NVIDIA A100 datasheet (A100 SXM, 80 GB).
    GPU('A100', 156e12, 19.5e12, 2.039e12, 0.3e12),
    # NVIDIA H100 datasheet (H100 SXM).
    GPU('H100', 495e12, 67e12, 3.35e12, 0.45e12),
)

#: The paper's table: seconds a batch of 256 on four V100, by network and block.
PUBLISHED = {
    'resnet18': dict(none=0.086, DBB=0.241, OREPA=0.120),
    'resnet34': dict(none=0.116, DBB=0.424, OREPA=0.182),
    'resnet50': dict(none=0.204, DBB=0.380, OREPA=0.252),
    'resnet101': dict(none=0.382, DBB=0.641, OREPA=0.445),
    'resnext50': dict(none=0.286, OREPA=0.343),
}
PUBLISHED_ON, PUBLISHED_BATCH, PUBLISHED_PROCESSES = 'V100', 64, 4


def operation_seconds(operation: Operation, gpu: GPU) -> float:
    """What one operation takes, its launch included."""
    if operation.is_sent:
        return LAUNCH + operation.bytes / gpu.link
    is_convolution = operation.name.startswith('aten.convolution')
    speed = gpu.convolution if is_convolution else gpu.product
    return operation.calls * LAUNCH + max(operation.flops / speed, operation.bytes / gpu.memory)


def step_seconds(step: CountedStep, gpu: GPU, accumulate: int = 1, processes: int = 1) -> float:
    """What a training step takes.

    Args:
        step (CountedStep): See there.
        gpu (GPU): See there.
        accumulate (int): Micro-batches; gradients are reduced during the last one's backward pass.
        processes (int): How many reduce their gradients, in a ring.
    """
    seconds = {
        name: sum(operation_seconds(operation, gpu) for operation in part)
        for name, part in step.parts.items()
    }
    reducing = 2 * (processes - 1) / processes * step.gradients / gpu.link
    behind = seconds['backward'] / accumulate
    return sum(seconds.values()) + max(0.0, reducing - behind)


def computed(steps: Sequence[CountedStep], accumulate: int, processes: int) -> dict[str, float]:
    """Seconds a step by GPU, the slowest process's."""
    return {
        gpu.name: max(step_seconds(step, gpu, accumulate, processes) for step in steps)
        for gpu in GPUS
    }


@dataclass(frozen=True)
class Check:
    """One row of the paper's table, and what was computed for it.

    Attributes:
        network (str): Its name.
        subject (str): The subject whose operations were counted.
        seconds (float): Computed.
        published (float): Seconds.
        ratio (float, optional): Computed, over the plain network; None for that itself, or
            without it.
        published_ratio (float): Likewise.
    """

    network: str
    subject: str
    seconds: float
    published: float
    ratio: float | None
    published_ratio: float

    @property
    def error(self) -> float:
        """Of the seconds: 0.1 is a tenth too long."""
        return self.seconds / self.published - 1

    @property
    def ratio_error(self) -> float | None:
        """Of the ratio."""
        return None if self.ratio is None else self.ratio / self.published_ratio - 1


def checks(results: Sequence[CaseResult]) -> list[Check]:
    """The rows of the paper's table whose operations were counted: plain, and in the released code.

    Args:
        results (Sequence[CaseResult]): Those of networks; others than of the paper's condition
            are left out.
    """
    paper = dict(batch=PUBLISHED_BATCH, size=224, width=1.0, accumulate=1)
    paper.update(processes=PUBLISHED_PROCESSES, frozen_stages=-1)
    found = []
    for result in results:
        case = result.case
        published = PUBLISHED.get(case['network'])
        if published is None or any(case[key] != value for key, value in paper.items()):
            continue
        plain = result['none'].computed.get(PUBLISHED_ON)
        for block, seconds_published in published.items():
            name = block if block == 'none' else f'released-{block}'
            seconds = result[name].computed.get(PUBLISHED_ON)
            if seconds is not None:
                ratio = None if plain is None or block == 'none' else seconds / plain
                ratio_published = seconds_published / published['none']
                found.append(
                    Check(case['network'], name, seconds, seconds_published, ratio, ratio_published)
                )
    return found
