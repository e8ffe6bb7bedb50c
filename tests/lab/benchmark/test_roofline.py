"""Seconds out of counts, by hand; and the rows of the paper."""

import pytest

from lab.benchmark.made_up import measured, network_result
from mmorepa.lab.benchmark.counted_step import CountedStep
from mmorepa.lab.benchmark.operations import Operation, Operations
from mmorepa.lab.benchmark.roofline import (
    GPU,
    GPUS,
    LAUNCH,
    PUBLISHED_ON,
    checks,
    computed,
    operation_seconds,
    step_seconds,
)

#: A second for 4 of a convolution, 2 of a product, 8 bytes of memory and 1 byte sent.
SLOW = GPU('slow', convolution=4, product=2, memory=8, link=1)


@pytest.mark.parametrize(
    'operation, seconds',
    [
        (Operation('aten.convolution', flops=40, bytes=8), 10 + LAUNCH),
        (Operation('aten.convolution_backward', flops=40, bytes=8, calls=2), 10 + 2 * LAUNCH),
        (Operation('aten.mm', flops=40, bytes=8), 20 + LAUNCH),
        (Operation('aten.mm', flops=4, bytes=80), 10 + LAUNCH),
        (Operation('aten.add', flops=0, bytes=80), 10 + LAUNCH),
        (Operation('c10d.broadcast_', flops=0, bytes=3), 3 + LAUNCH),
    ],
    ids=str,
)
def test_operation(operation, seconds):
    assert operation_seconds(operation, SLOW) == pytest.approx(seconds)


def step(gradients=0, **seconds):
    """Parts that take so long by their memory."""
    parts = {
        name: Operations([Operation('aten.add', 0, int(8 * count))])
        for name, count in seconds.items()
    }
    return CountedStep(parts, gradients)


def test_step_is_the_sum_of_its_parts():
    made = step(forward=3, backward=4, optimizer=2)
    assert step_seconds(made, SLOW) == pytest.approx(9, abs=1e-3)
    assert made.without_optimizer.total == 2


@pytest.mark.parametrize(
    'gradients, accumulate, processes, more',
    [
        (6, 1, 1, 0),  # nobody to reduce with
        (4, 1, 2, 0),  # 4 s, behind the backward pass
        (6, 1, 2, 2),  # 6 s, behind its 4
        (4, 1, 4, 2),  # a ring of four sends 1.5 times as much
        (4, 4, 2, 3),  # behind that of the last micro-batch
    ],
    ids=str,
)
def test_reducing_hides_behind_the_backward_pass(gradients, accumulate, processes, more):
    made = step(gradients, forward=3, backward=4)
    assert step_seconds(made, SLOW, accumulate, processes) == pytest.approx(7 + more, abs=1e-3)


def test_the_slowest_process_counts():
    fast, slow = step(backward=1), step(backward=2)
    together = computed([fast, slow], accumulate=1, processes=2)
    assert together == computed([slow], accumulate=1, processes=2)
    assert list(together) == [gpu.name for gpu in GPUS]


class TestChecks:
    @staticmethod
    def result(**kwargs):
        seconds = {'none': 0.1, 'released-OREPA': 0.15, 'OREPA': 0.11}
        subjects = [measured(name, computed={PUBLISHED_ON: s}) for name, s in seconds.items()]
        condition = dict(batch=64, processes=4)
        return network_result(*subjects, **{**condition, **kwargs})

    def test_rows(self):
        plain, orepa = checks([self.result()])
        assert (plain.subject, plain.published, plain.ratio) == ('none', 0.086, None)
        assert plain.error == pytest.approx(0.1 / 0.086 - 1)
        assert plain.ratio_error is None
        assert orepa.subject == 'released-OREPA'
        assert orepa.ratio == pytest.approx(1.5)
        assert orepa.ratio_error == pytest.approx(1.5 / (0.120 / 0.086) - 1)

    @pytest.mark.parametrize(
        'change',
        [
            dict(batch=8),
            dict(processes=1),
            dict(size=128),
            dict(width=0.5),
            dict(accumulate=2),
            dict(frozen_stages=1),
            dict(network='resnet152'),
        ],
        ids=str,
    )
    def test_other_conditions_are_not_compared(self, change):
        assert checks([self.result(**change)]) == []

    def test_without_the_plain_network(self):
        result = self.result()
        del result.subjects[0]
        (row,) = checks([result])
        assert (row.ratio, row.ratio_error) == (None, None)
