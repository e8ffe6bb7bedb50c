"""Taking turns, going on after a failure, and the two kinds of clock."""

import time

import pytest
import torch

from mmorepa.errors import UserError
from mmorepa.lab.benchmark.timing import Clock, failing_to, reason_of, rotated, run_in_turn


class Log:
    """Actions that only tell in which order they ran."""

    def __init__(self, *names, failing=(), from_repeat=0):
        self.ran, self.recorded, self.failed, self.ticks = [], [], {}, 0
        self.failing, self.from_repeat = failing, from_repeat
        self.actions = {name: lambda name=name: self.act(name) for name in names}

    def act(self, name):
        self.ran.append(name)
        if name in self.failing and self.ran.count(name) > self.from_repeat:
            raise RuntimeError(f'{name} broke\nsecond line')
        return dict(step=float(len(self.ran)))

    def tick(self):
        self.ticks += 1

    def run(self, repeats, warm_up):
        run_in_turn(
            self.actions,
            repeats,
            warm_up,
            lambda name, sample: self.recorded.append((name, sample['step'])),
            self.failed.__setitem__,
            self.tick,
        )


def test_everyone_is_first_in_turn():
    log = Log('a', 'b', 'c')
    log.run(repeats=3, warm_up=0)
    assert log.ran == ['a', 'b', 'c', 'b', 'c', 'a', 'c', 'a', 'b']
    assert log.ticks == 9


def test_warm_up_is_not_recorded():
    log = Log('a', 'b')
    log.run(repeats=2, warm_up=3)
    assert len(log.ran) == 10
    assert sorted(name for name, _ in log.recorded) == ['a', 'a', 'b', 'b']
    assert min(step for _, step in log.recorded) == 7


def test_a_failure_ends_one_and_the_rest_goes_on():
    log = Log('a', 'b', 'c', failing='b', from_repeat=2)
    log.run(repeats=4, warm_up=1)
    assert log.failed == {'b': 'RuntimeError: b broke'}
    assert log.ran.count('b') == 3
    assert [name for name, _ in log.recorded].count('b') == 1
    for name in 'ac':
        assert [other for other, _ in log.recorded].count(name) == 4


def test_all_may_fail():
    log = Log('a', 'b', failing='ab')
    log.run(repeats=2, warm_up=0)
    assert set(log.failed) == {'a', 'b'}
    assert log.recorded == []


def test_ctrl_c_is_no_failure():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_turn({'a': interrupt}, 1, 0, lambda *_: None, lambda *_: None)


@pytest.mark.parametrize('by, expected', [(0, 'abc'), (1, 'bca'), (5, 'cab'), (-1, 'cab')])
def test_rotated(by, expected):
    assert rotated(list('abc'), by) == list(expected)


def test_rotating_nothing():
    assert rotated([], 3) == []


@pytest.mark.parametrize(
    'error, expected',
    [
        (UserError('found this, wanted that'), 'found this, wanted that'),
        (RuntimeError('one\ntwo'), 'RuntimeError: one'),
        (ValueError(), 'ValueError: no reason given'),
    ],
    ids=str,
)
def test_reason_is_one_line(error, expected):
    assert reason_of(error) == expected


def test_clock_of_a_cpu(monkeypatch):
    times = iter([10.0, 12.5])
    monkeypatch.setattr(time, 'perf_counter', lambda: next(times))
    clock = Clock('cpu')
    assert clock.between(clock.mark(), clock.mark()) == 2.5


def test_parts_of_a_name_add_up(monkeypatch):
    """Two runs of three parts: a clock that is read once a second."""
    ran = []
    monkeypatch.setattr(time, 'perf_counter', lambda: float(len(ran)))
    parts = [(name, lambda name=name: ran.append(name)) for name in ('a', 'b', 'a')]
    assert Clock('cpu').timed(parts, 2) == dict(a=2, b=1, step=3)
    assert ran == ['a', 'b', 'a', 'a', 'b', 'a']


def test_failing_to():
    failures = {}
    with failing_to(failures, 'build'):
        raise UserError('found this')
    with failing_to(failures, 'train'):
        pass
    assert failures == dict(build='found this')


def test_clock_of_a_gpu(monkeypatch):
    """Its marks are events, and give milliseconds; waiting is for the device as a whole."""
    waited = []

    class Event:
        now = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.now += 250.0
            self.at = Event.now

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', waited.append)
    clock = Clock('cuda:0')
    begin, end = clock.mark(), clock.mark()
    assert waited == []
    assert clock.between(begin, end) == 0.25
    clock.now()
    assert waited == [torch.device('cuda:0')]
