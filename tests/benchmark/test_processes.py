"""Several processes that train together, small enough to be quick."""

import pytest
import torch

from mmorepa.benchmark import processes
from mmorepa.benchmark.plan import NetworkCase, Setup
from mmorepa.benchmark.subjects import Subject, build, parse
from mmorepa.errors import UserError

FLOAT = 4
BAD = Subject('bad', dict(type='OREPA', branches=['nothing']))


def case(*subjects, **kwargs):
    condition = dict(network='resnet18', batch=2, size=32, width=0.125, processes=2)
    return NetworkCase(subjects, **{**condition, **kwargs})


def test_side_by_side():
    names = ('none', 'OREPA', 'OREPA-squeezed', 'OREPA-shared-out')
    one = case(*[parse(name) for name in names], BAD, accumulate=2)
    found = {subject.name: subject for subject in processes.measure(one, repeats=2, warm_up=1)}
    bad = found.pop('bad')
    assert 'no branch is named' in bad.failures['build']
    assert list(found) == list(names)
    for subject in found.values():
        assert subject.failures == {}
        parts = {'step', 'forward', 'backward', 'optimizer'}
        if subject.name in names[2:]:
            parts |= {'pull_back', 'generate'}
        assert set(subject.seconds) == parts
        assert all(len(samples) == 2 for samples in subject.seconds.values())

    # Gradients once a step, though it has two micro-batches; buffers in every forward pass.
    plain = build(parse('none'), 'resnet18', 0.125)
    gradients = FLOAT * sum(p.numel() for p in plain.parameters())
    assert found['none'].sent['allreduce'] == gradients
    buffers = sum(b.numel() * b.element_size() for b in plain.buffers())
    assert found['none'].sent['broadcast'] in (buffers, 2 * buffers)
    branches = FLOAT * sum(p.numel() for p in build(parse('OREPA'), 'resnet18', 0.125).parameters())
    assert found['OREPA'].sent['allreduce'] == branches
    # The gradients of the plain network, and kernels if need be.
    squeezed, shared = (found[name].sent for name in names[2:])
    assert squeezed['allreduce'] == shared['allreduce'] == gradients
    assert sum(shared.values()) > sum(squeezed.values())


def test_a_process_that_fails():
    with pytest.raises(RuntimeError, match='no such place') as info:
        processes.measure(case(parse('none'), setup=Setup('no such place')), 1, 0)
    assert '\n' not in str(info.value)


def test_every_process_wants_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    on_gpu = case(parse('none'), setup=Setup('cuda'))
    with pytest.raises(UserError, match='found 1 GPUs, wanted one for each of 2 processes'):
        processes.check(on_gpu)
    processes.check(case(parse('none')))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    processes.check(on_gpu)
