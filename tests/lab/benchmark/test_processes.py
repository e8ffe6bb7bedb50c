"""Several processes that train together, small enough to be quick."""

import pytest
import torch

from mmorepa.convs import OREPAConv2d
from mmorepa.errors import UserError
from mmorepa.lab.benchmark import processes
from mmorepa.lab.benchmark.plan import NetworkCase, Setup
from mmorepa.lab.benchmark.subjects import Subject, build, parse

BAD = Subject('bad', dict(type='OREPA', branches=['nothing']))


def case(*subjects, **kwargs):
    condition = dict(network='resnet18', batch=2, size=32, width=0.125, processes=2)
    return NetworkCase(subjects, **{**condition, **kwargs})


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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

    # Once a step, though it has two micro-batches: gradients, and DDP's buffers.
    plain, online, squeezed = (build(parse(name), 'resnet18', 0.125) for name in names[:3])
    sent = [found[name].sent for name in names]
    gradients = size_of(plain.parameters())
    assert sent[0] == dict(allreduce=gradients, broadcast=size_of(plain.buffers()))
    buffers = size_of(online.buffers())
    assert sent[1] == dict(allreduce=size_of(online.parameters()), broadcast=buffers)
    assert sent[2] == dict(allreduce=gradients, broadcast=buffers)
    kernels = size_of(m.weight for m in squeezed.modules() if isinstance(m, OREPAConv2d))
    assert sent[3] == dict(allreduce=gradients, broadcast=buffers + kernels)


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
