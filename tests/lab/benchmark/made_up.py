"""Results made up for tests: every number is known."""

from mmorepa.lab.benchmark.plan import KernelCase, NetworkCase, Setup
from mmorepa.lab.benchmark.results import CaseResult, Measured, Results
from mmorepa.lab.benchmark.subjects import parse

MIB = 2**20


def measured(name, scale=1.0, generation=False, **kwargs):
    """A subject with three repeats: a step takes ``scale`` times 9, 10 and 12 seconds."""
    parts = dict(step=1.0, forward=0.4, backward=0.5, optimizer=0.1, eval=0.2, deploy=0.1)
    if generation:
        parts.update(forward=0.3, backward=0.3, generate=0.1, pull_back=0.2)
    repeats = (9.0, 10.0, 12.0)
    seconds = {part: [scale * share * r for r in repeats] for part, share in parts.items()}
    saved = dict(activations=100 * MIB, kernels=20 * MIB if generation else 0)
    kept = dict(parameters=4 * MIB, buffers=MIB, gradients=3 * MIB, optimizer=2 * MIB)
    return Measured(name, seconds=seconds, bytes={**kept, **saved}, **kwargs)


def network_result(*subjects, network='resnet18', batch=8, size=224, **kwargs):
    """A case of made-up subjects."""
    named = tuple(parse('none') for _ in subjects)
    case = NetworkCase(named, network, batch, size, **kwargs)
    return CaseResult(case.describe(), list(subjects))


def kernel_result(*subjects, channels=64, kernel_size=3, **kwargs):
    """A kernel of made-up subjects."""
    case = KernelCase(channels, channels, kernel_size, **kwargs)
    return CaseResult(case.describe(), list(subjects))


def results(*cases, **kwargs):
    """Made-up results."""
    fields = dict(
        command='python tools/benchmark.py',
        machine='a machine',
        software='torch 0',
        started='2000-01-01 00:00:00',
        finished='2000-01-01 00:01:00',
        threads=1,
        repeats=3,
        warm_up=1,
        load=[0.5, 1.0],
    )
    return Results(**{**fields, **kwargs}, cases=list(cases))


GPU = Setup('cuda', amp=True, channels_last=True, steps=4)
