"""Whole benchmarks of networks so small that they are quick. What they take is not looked at."""

import json

import pytest
import torch

from mmorepa.errors import UserError
from mmorepa.lab.benchmark import measuring, steps
from mmorepa.lab.benchmark.measuring import FLOOR, KERNEL, Study
from mmorepa.lab.benchmark.plan import KernelCase, NetworkCase, Setup, ladder
from mmorepa.lab.benchmark.results import read
from mmorepa.lab.benchmark.subjects import Subject, parse

TRAINING = {'step', 'forward', 'backward', 'optimizer'}
GENERATION = {'generate', 'pull_back'}
#: Where counting operations, which takes the longest, is of no matter.
TRAIN = ('train',)
REPEATS = 2


def case(*names, width=0.125, **kwargs):
    subjects = tuple(parse(name) for name in names)
    return NetworkCase(subjects, 'resnet18', batch=2, size=32, width=width, **kwargs)


def run(*cases, **kwargs):
    return Study(cases, **{**dict(repeats=REPEATS, warm_up=1), **kwargs}).run().cases


def test_everything_of_a_network():
    (result,) = run(case('none', 'DBB', 'OREPA', 'OREPA-squeezed', 'OREPA-offline'))
    for subject in result.subjects:
        makes_kernels = subject.name in ('OREPA', 'OREPA-squeezed')
        wanted = TRAINING | {'eval', 'deploy'} | (GENERATION if makes_kernels else set())
        assert subject.failures == {}
        assert set(subject.seconds) == wanted
        assert all(len(samples) == REPEATS for samples in subject.seconds.values())
        assert (subject.bytes['kernels'] > 0) == (subject.name == 'OREPA')
        assert set(subject.operations) == {'network', 'update', 'flops', 'bytes'}
        assert (subject.operations['update'] > 0) == (subject.name == 'OREPA-squeezed')
        assert set(subject.computed) == {'V100', 'A100', 'H100'}
        assert 'peak' not in subject.bytes
    sizes = {subject.name: subject.trainable for subject in result.subjects}
    assert sizes['none'] < sizes['DBB'] < sizes['OREPA']
    assert sizes['OREPA'] == sizes['OREPA-offline'] == sizes['OREPA-squeezed']


@pytest.mark.parametrize(
    'measures, wanted',
    [
        (('train',), TRAINING | GENERATION),
        (('eval',), {'eval', 'deploy'}),
        (('memory',), set()),
        (('operations',), set()),
    ],
    ids=['train', 'eval', 'memory', 'operations'],
)
def test_part_of_it(measures, wanted):
    (result,) = run(case('OREPA', measures=measures))
    (subject,) = result.subjects
    assert set(subject.seconds) == wanted
    assert bool(subject.bytes) == ('memory' in measures)
    assert bool(subject.operations) == bool(subject.computed) == ('operations' in measures)


@pytest.mark.parametrize(
    'setup',
    [
        Setup(amp=True),
        Setup(channels_last=True),
        Setup(optimizer='foreach'),
        Setup(optimizer='fused'),
        Setup(steps=3),
    ],
    ids=str,
)
def test_setups(setup):
    (result,) = run(case('none', 'OREPA', setup=setup, measures=('train', 'eval')), repeats=1)
    assert [subject.failures for subject in result.subjects] == [{}, {}]
    assert set(result['OREPA'].seconds) == TRAINING | GENERATION | {'eval', 'deploy'}


def test_frozen_stages_make_no_kernel():
    (result,) = run(case('OREPA', frozen_stages=4, measures=('train',)))
    assert set(result['OREPA'].seconds) == TRAINING
    assert result['OREPA'].trainable == 64 * 1000 + 1000


def test_ladder():
    subjects = ladder()
    assert [subject.rung for subject in subjects[::2]] == [
        'base',
        '+DBB',
        '+freq. prior',
        '+linear DW',
        '+linear stem',
    ]
    one = NetworkCase(subjects, 'resnet18', 2, 32, 0.125, measures=('memory',))
    (result,) = run(one, repeats=1)
    found = {subject.name: subject for subject in result.subjects}
    assert all(subject.failures == {} for subject in result.subjects)
    for rung in ('+DBB', '+freq. prior', '+linear DW', '+linear stem'):
        offline, online = found[f'offline {rung}'], found[f'online {rung}']
        assert offline.trainable == online.trainable
        assert offline.bytes['activations'] > online.bytes['activations']
        assert online.bytes['activations'] == found['none'].bytes['activations']
    parameters = [subject.trainable for subject in result.subjects[::2]]
    assert parameters == sorted(set(parameters))


@pytest.mark.parametrize('shape', [(4, 4, 3), (4, 6, 1), (3, 4, 7)], ids=str)
def test_kernels(shape):
    (result,) = run(KernelCase(*shape))
    assert [subject.name for subject in result.subjects] == [FLOOR, KERNEL]
    for subject in result.subjects:
        assert subject.failures == {}
        assert set(subject.seconds) == {'step', 'generate', 'pull_back'}


def test_generation_goes_back_to_every_parameter():
    """The gradients, which are dropped in the end, have been there."""
    block = measuring.OREPAConv2d(4, 4, 3, bias=False)
    generation = steps.Generation(block, Setup())
    generation.generate()
    generation.pull_back()
    assert all(p.grad is not None for p in block.parameters())
    generation()
    assert all(p.grad is None for p in block.parameters())


def test_a_training_step_trains():
    torch.manual_seed(0)
    network = measuring.build(parse('OREPA'), 'resnet18', 0.125)
    step = steps.TrainStep(network, steps.images(2, 32, Setup()), Setup())
    before = network.fc.bias.clone()
    step()
    assert not torch.equal(network.fc.bias, before)
    moved = {id(parameter) for parameter in step.optimizer.state}
    assert moved == {id(parameter) for parameter in network.parameters()}
    assert all(p.grad is None for p in network.parameters())


def test_micro_batches_train_as_one_batch():
    """Of a network without BatchNorms, whose statistics differ."""

    def trained(batch, accumulate):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
        x = steps.images(2, 8, Setup()).repeat(batch, 1, 1, 1)
        step = steps.TrainStep(network.double(), x.double(), Setup(), accumulate)
        step.labels = torch.arange(2).repeat(batch)
        sample = step()
        assert set(sample) == TRAINING
        return network[1].weight

    torch.testing.assert_close(trained(3, 1), trained(1, 3))


def test_micro_batches_update_once():
    network = measuring.build(parse('OREPA-squeezed'), 'resnet18', 0.125)
    step = steps.TrainStep(network, steps.images(2, 32, Setup()), Setup(), accumulate=3)
    names = [name for name, _ in step.parts]
    assert names == 3 * ['forward', 'backward'] + ['pull_back', 'optimizer', 'generate']


@pytest.mark.parametrize('mode', ['squeezed', 'offline'])
def test_modes_train_alike(mode):
    """What is measured is the same training, and comes to the same network."""

    def trained(name):
        torch.manual_seed(0)
        network = measuring.build(parse(name), 'resnet18', 0.125).double()
        step = steps.TrainStep(network, steps.images(2, 32, Setup()).double(), Setup(), 2)
        for _ in range(2):
            step()
        return network.state_dict()

    torch.testing.assert_close(trained(f'OREPA-{mode}'), trained('OREPA'))


def test_processes(monkeypatch):
    """Every subject that they come back with, and the reason where they do not."""
    one = case('none', measures=('train', 'operations'), processes=2)

    def measure(case, repeats, warm_up, released_path, threads):
        assert (repeats, warm_up, threads) == (REPEATS, 1, 3)
        return [measuring.Measured('none', sent=dict(allreduce=5))]

    monkeypatch.setattr(measuring.processes, 'measure', measure)
    (result,) = run(one, threads_each=3)
    assert result['none'].sent == dict(allreduce=5)
    assert result['none'].operations

    def fail(*args):
        raise RuntimeError('no more')

    monkeypatch.setattr(measuring.processes, 'measure', fail)
    (result,) = run(one)
    assert result['none'].failures == dict(train='RuntimeError: no more')
    assert result['none'].operations


def test_a_step_that_fails_keeps_nothing(monkeypatch):
    network = measuring.build(parse('OREPA'), 'resnet18', 0.125)
    step = steps.TrainStep(network, steps.images(2, 32, Setup()), Setup())

    def broken(*args):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(step.optimizer, 'step', broken)
    with pytest.raises(RuntimeError, match='out of memory'):
        step()
    assert step.loss is None
    assert all(p.grad is None for p in network.parameters())


def test_evaluation_is_in_eval_mode_without_gradients(monkeypatch):
    network = measuring.build(parse('OREPA'), 'resnet18', 0.125)
    seen = []
    step = steps.EvalStep(network, steps.images(2, 32, Setup()), Setup())
    network.register_forward_hook(
        lambda module, args, out: seen.append((module.training, out.requires_grad))
    )
    step()
    assert seen == [(False, False)]


class TestFailures:
    def test_one_subject_fails_and_the_rest_goes_on(self):
        bad = Subject('bad', dict(type='OREPA', branches=['nothing']))
        good = case('none', 'OREPA')
        subjects = *good.subjects, bad
        (result,) = run(NetworkCase(subjects, 'resnet18', 2, 32, 0.125, measures=TRAIN))
        assert 'no branch is named' in result['bad'].failures['build']
        assert result['bad'].seconds == {}
        assert len(result['OREPA'].samples('step')) == REPEATS

    def test_the_first_may_fail(self):
        bad = Subject('bad', dict(type='OREPA', branches=['nothing']))
        subjects = bad, parse('none')
        (result,) = run(NetworkCase(subjects, 'resnet18', 2, 32, 0.125, measures=TRAIN))
        assert result['none'].ratio(result.first) is None
        assert result['none'].spread('step') is not None

    def test_a_failure_while_running(self, monkeypatch):
        def broken(self, x):
            raise RuntimeError('out of something\nand more')

        monkeypatch.setattr(measuring.OREPAConv2d, 'forward', broken)
        (result,) = run(case('none', measures=TRAIN))
        assert result['none'].failures == {}
        study_ = Study([case('none', 'OREPA', measures=TRAIN)], repeats=1, warm_up=0)
        (result,) = study_.run().cases
        assert 'RuntimeError: out of something' in result['OREPA'].failures.values()
        assert result['none'].seconds

    def test_no_such_device(self):
        with pytest.raises(UserError, match='choose another --device'):
            Study([case('none', setup=Setup('nowhere'))])

    def test_no_checkout(self, tmp_path):
        with pytest.raises(UserError, match='holds no convnet_utils.py'):
            Study([case('none')], released_path=str(tmp_path))


def test_interrupted(tmp_path, monkeypatch):
    """What was measured up to then is in the file, the case that was going on included."""
    path = tmp_path / 'benchmark.json'
    count = 0

    def interrupt(self, *args, original=steps.TrainStep.forward):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(steps.TrainStep, 'forward', interrupt)
    two = [KernelCase(4, 4, 3), case('none', measures=('train',))]
    with pytest.raises(KeyboardInterrupt):
        Study(two, repeats=9, warm_up=1).run(lambda results: results.write(path))
    found = read(path)
    assert found.interrupted
    assert found.finished is None
    kernel, network = found.cases
    assert len(kernel[KERNEL].samples('step')) == 9
    assert len(network['none'].samples('step')) == 2


def test_file(tmp_path):
    path = tmp_path / 'deep' / 'benchmark.json'
    made = Study([case('none', 'OREPA'), KernelCase(4, 4, 3)], 2, 1, command='a command').run()
    made.write(path)
    assert read(path) == made
    content = json.loads(path.read_text())
    assert content['format'] == 2
    assert content['command'] == 'a command'
    assert not content['interrupted']
    first, second = content['cases'][0]['subjects']
    assert first['ratio']['median'] == 1
    assert second['summary']['step']['lowest'] == min(second['seconds']['step'])
    assert 'torch' in content['software']


@pytest.mark.parametrize(
    'text, message',
    [
        ('not json', 'is no result of'),
        ('[]', 'is no result of'),
        ('{"format": 2}', 'is no result of'),
        ('{"format": 99}', 'wanted 2'),
    ],
)
def test_other_files(tmp_path, text, message):
    path = tmp_path / 'benchmark.json'
    path.write_text(text)
    with pytest.raises(UserError, match=message) as info:
        read(path)
    assert '\n' not in str(info.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match='no results at'):
        read(tmp_path / 'nothing.json')


def test_progress_covers_all_actions():
    """Every action is one step of the bar, and there are as many as it says."""
    one = case('none', 'OREPA')
    made = Study([one], repeats=2, warm_up=1)
    ticks = []
    made.measure(one, lambda: ticks.append(1))
    assert len(ticks) == made.runs_of(one) == 2 * 3 + 2 + 2 * 2 * 3 + 2
