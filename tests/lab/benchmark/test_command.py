"""The command: its options, what it writes, and what it says when it cannot."""

import argparse
import itertools
import json
import runpy
import sys

import pytest

from mmorepa.errors import UserError
from mmorepa.lab.benchmark import command
from mmorepa.lab.benchmark.plan import KernelCase, NetworkCase, conditions, label
from support import CONFIG, ROOT

TOOL = ROOT / 'tools' / 'benchmark.py'
SMALL = ('--width', 0.125, '--size', 32, '--batch', 2, '--repeats', 2, '--warm-up', 1)


def options(monkeypatch, *arguments) -> argparse.Namespace:
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, arguments)])
    return runpy.run_path(str(TOOL))['parse_args']()


def test_whole(tmp_path, run_forked):
    """Measured, printed, written; then shown again from the file."""
    out = tmp_path / 'out'
    printed = run_forked(
        ROOT,
        TOOL,
        'none',
        'OREPA',
        *SMALL,
        '--kernels',
        4,
        8,
        '--device',
        'cpu',
        '--threads',
        1,
        '--out',
        out,
    )
    names = ['bars.png', 'benchmark.json', 'benchmark.md', 'kernels.png', 'split.png']
    assert sorted(path.name for path in out.iterdir()) == names
    report = (out / 'benchmark.md').read_text()
    assert report in printed
    content = json.loads((out / 'benchmark.json').read_text())
    assert content['threads'] == 1
    assert content['command'].startswith('python ')
    assert '--width 0.125' in content['command']
    again = tmp_path / 'again'
    assert report in command.show(out / 'benchmark.json', again) + '\n'
    assert (again / 'bars.png').read_bytes()[:4] == b'\x89PNG'


class TestPlan:
    def test_default(self, monkeypatch):
        (case,) = command.plan(options(monkeypatch, '--device', 'cpu'))
        assert [s.name for s in case.subjects] == list(command.DEFAULT_SUBJECTS)
        assert case.label() == 'resnet18, 8 × 224²'
        assert case.measures == ('train', 'memory', 'eval', 'operations')
        assert case.setup.steps == 1
        assert (case.accumulate, case.processes) == (1, 1)

    def test_accumulate(self, monkeypatch):
        (case,) = command.plan(options(monkeypatch, '--accumulate', 4))
        assert case.label() == 'resnet18, 8 × 224², 4 micro-batches'

    def test_processes(self, monkeypatch):
        (case,) = command.plan(options(monkeypatch, '--processes', 2))
        assert [s.name for s in case.subjects] == [
            'none',
            'OREPA',
            'OREPA-squeezed',
            'OREPA-shared-out',
        ]
        assert [s.shared_out for s in case.subjects] == [False, False, False, True]
        assert case.measures == ('train', 'operations')
        assert case.label() == 'resnet18, 8 × 224², 2 processes'

    def test_setup(self, monkeypatch):
        arguments = '--device cuda:1 --amp --channels-last --compile --optimizer fused'.split()
        (case,) = command.plan(options(monkeypatch, *arguments))
        assert str(case.setup) == 'cuda:1, AMP, channels_last, compiled, fused SGD'
        assert case.setup.steps == 4

    def test_conditions_and_kernels(self, monkeypatch):
        arguments = '--network resnet18 repvgg-a0 --batch 8 16 --size 64 128 --kernels 32'.split()
        plan = command.plan(options(monkeypatch, *arguments))
        assert [case.label() for case in plan[:3]] == [
            'resnet18, 8 × 64²',
            'resnet18, 8 × 128²',
            'resnet18, 16 × 64²',
        ]
        assert [case.kernel_size for case in plan if isinstance(case, KernelCase)] == [3, 1]
        assert len(plan) == 2 * 3 + 2
        assert plan[-1].setup.steps > plan[0].setup.steps

    def test_configs_need_no_network(self, monkeypatch):
        (case,) = command.plan(options(monkeypatch, CONFIG, '--measure', 'eval', 'train'))
        assert case.network is None
        assert case.measures == ('train', 'eval')

    def test_released(self, monkeypatch, tmp_path):
        (case,) = command.plan(options(monkeypatch, '--released', tmp_path))
        assert [s.name for s in case.subjects][-2:] == ['released-DBB', 'released-OREPA']

    def test_paper(self, monkeypatch):
        (case,) = command.plan(options(monkeypatch, '--preset', 'paper', '--batch', 64))
        assert (case.batch, len(case.subjects), case.network) == (64, 9, 'resnet18')

    def test_roofline(self, monkeypatch, tmp_path):
        plan = command.plan(options(monkeypatch, '--preset', 'roofline', '--released', tmp_path))
        assert [case.label() for case in plan] == [
            'resnet18, 64 × 224², 4 processes',
            'resnet50, 64 × 224², 4 processes',
        ]
        assert {case.measures for case in plan} == {('operations',)}
        assert [s.name for s in plan[0].subjects][3:] == [
            'OREPA-shared-out',
            'released-DBB',
            'released-OREPA',
        ]
        (case,) = command.plan(
            options(monkeypatch, *'--preset roofline --network resnet34 --processes 8'.split())
        )
        assert case.processes == 8

    def test_targets(self, monkeypatch):
        targets = runpy.run_path(str(TOOL))['load_targets']()
        arguments = '--preset targets --size 64 --device cpu'.split()
        plan = command.plan(options(monkeypatch, *arguments), targets)
        assert {case.size for case in plan if not isinstance(case, KernelCase)} == {64}
        assert {case.setup.device for case in plan} == {'cpu'}

    @pytest.mark.parametrize(
        'text, message',
        [
            ('none none', 'two subjects are named none'),
            ('released-DBB', 'wants --released PATH'),
            ('--network resnet19', 'choose from resnet18, '),
            (f'{CONFIG} --network resnet18', 'leave it out beside configs alone'),
            ('--warm-up -1', 'wanted 0 or more'),
            ('none --preset paper', 'chooses SUBJECT itself'),
            ('--preset targets --batch 3', 'chooses batch itself'),
            ('--preset targets --kernels 3', 'chooses kernels itself'),
            ('--preset targets --processes 3', 'chooses processes itself'),
            ('--preset paper --accumulate 3', 'chooses accumulate itself'),
            ('--preset roofline --measure train', 'chooses measure itself'),
            ('OREPA-shared-out', 'give --processes 2 or more'),
            ('--processes 2 --measure eval memory', 'leave out --processes, or give train'),
        ],
    )
    def test_what_does_not_go_together(self, monkeypatch, text, message):
        with pytest.raises(UserError, match=message) as info:
            command.plan(options(monkeypatch, *text.split()))
        assert '\n' not in str(info.value)


def test_conditions_vary_one_at_a_time():
    values = ([8, 16, 8], [64, 32], [1.0, 2.0])
    assert conditions(*values) == [
        (8, 64, 1.0),
        (8, 64, 2.0),
        (8, 32, 1.0),
        (16, 64, 1.0),
    ]
    assert conditions(*values, grid=True) == list(itertools.product([8, 16], [64, 32], [1.0, 2.0]))


@pytest.mark.parametrize(
    'change, expected',
    [
        ({}, 'resnet18, 8 × 224²'),
        (dict(width=0.5), 'resnet18, 8 × 224², width ×0.5'),
        (dict(frozen_stages=2), 'resnet18, 8 × 224², 2 stages frozen'),
        (dict(network=None), 'configs, 8 × 224²'),
        (dict(accumulate=4), 'resnet18, 8 × 224², 4 micro-batches'),
        (dict(processes=2), 'resnet18, 8 × 224², 2 processes'),
    ],
    ids=str,
)
def test_label(change, expected):
    base = NetworkCase((), 'resnet18', 8, 224).describe()
    assert label({**base, **change}) == expected
