"""A step's operations on the meta device: nothing is computed, whatever the batch."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from mmorepa.lab.benchmark.counted_step import count_step
from mmorepa.lab.benchmark.measuring import totals
from mmorepa.lab.benchmark.operations import count_operations
from mmorepa.lab.benchmark.plan import NetworkCase, Setup
from mmorepa.lab.benchmark.steps import TrainStep, images
from mmorepa.lab.benchmark.subjects import build, parse

FLOAT = 4
SQUEEZED = ('pull_back', 'optimizer', 'generate')


def count(name, network='resnet18', width=0.125, batch=2, size=32, **kwargs):
    subject = parse(name)
    case = NetworkCase((subject,), network, batch, size, width, **kwargs)
    return count_step(partial(build, subject, network, width), case, subject.shared_out)


def test_floating_point_work_of_a_known_network():
    """ResNet-50 has 4.09 billion multiply-adds at 224 x 224, and 25.6 million parameters."""
    (step,) = count('none', 'resnet50', width=1, batch=64, size=224)
    assert step.parts['forward'].flops == pytest.approx(2 * 64 * 4.09e9, rel=0.002)
    assert step.gradients == FLOAT * 25_557_032


def test_counts_are_those_of_a_real_step():
    """In a plain network every path is the same on a CPU."""
    (step,) = count('none')
    setup = Setup(optimizer='foreach')
    torch.manual_seed(0)
    real = TrainStep(build(parse('none'), 'resnet18', 0.125), images(2, 32, setup), setup)
    real()  # after which the optimizer has its state
    for name, work in real.parts:
        assert count_operations(work).by_name == step.parts[name].by_name


def test_counts_do_not_depend_on_the_batch():
    (small,), (large,) = count('OREPA'), count('OREPA', batch=4)
    names = [[operation.name for operation in step.without_optimizer] for step in (small, large)]
    assert names[0] == names[1]


def test_online_is_within_the_passes():
    (plain,), (online,) = count('none'), count('OREPA')
    assert list(online.parts) == list(plain.parts) == ['forward', 'backward', 'optimizer']
    for name in ('forward', 'backward'):
        assert online.parts[name].total > plain.parts[name].total
        assert online.parts[name].flops > plain.parts[name].flops
    assert online.gradients > plain.gradients


@pytest.mark.parametrize('name, times', [('none', 3), ('OREPA', 3)])
def test_micro_batches(name, times):
    (one,), (several,) = count(name), count(name, accumulate=times)
    assert several.parts['forward'].total == times * one.parts['forward'].total
    assert several.parts['optimizer'].total == one.parts['optimizer'].total


class TestSqueezed:
    def test_passes_are_those_of_the_plain_network(self):
        (plain,), (squeezed,) = count('none'), count('OREPA-squeezed')
        assert list(squeezed.parts) == ['forward', 'backward', *SQUEEZED]
        for name in ('forward', 'backward'):
            assert squeezed.parts[name].by_name == plain.parts[name].by_name
        assert squeezed.gradients == plain.gradients
        assert squeezed.parts['pull_back'].total > 0
        assert squeezed.parts['generate'].total > 0

    def test_micro_batches_update_once(self):
        (one,), (several,) = count('OREPA-squeezed'), count('OREPA-squeezed', accumulate=3)
        for name in SQUEEZED:
            assert several.parts[name].total == one.parts[name].total

    def test_fewer_than_online(self):
        (online,), (squeezed,) = count('OREPA'), count('OREPA-squeezed')
        assert squeezed.without_optimizer.total < online.without_optimizer.total

    def test_shared_out(self):
        """The processes share the work of one, and send each other kernels."""
        (alone,) = count('OREPA-squeezed')
        both = count('OREPA-shared-out', processes=2)
        assert len(both) == 2
        assert not dist.is_initialized()
        for name in ('pull_back', 'generate'):
            shares = [step.parts[name].flops for step in both]
            assert sum(shares) == alone.parts[name].flops
            assert all(0 < share < alone.parts[name].flops for share in shares)
        assert all(sum(step.parts['generate'].sent.values()) > 0 for step in both)


def test_totals():
    (step,) = count('OREPA')
    found = totals([step])
    assert found['network'] == step.parts['forward'].total + step.parts['backward'].total
    assert found['update'] == 0
    assert found['flops'] == step.parts['forward'].flops + step.parts['backward'].flops
