"""Every target is measured by the preset, and judged by the right numbers."""

import runpy
from types import SimpleNamespace

import pytest

from lab.benchmark.made_up import GPU, kernel_result, measured, network_result, results
from lab.benchmark.test_tables import rows_of
from mmorepa.lab.benchmark import command
from mmorepa.lab.benchmark.measuring import FLOOR, KERNEL, RELEASED_KERNEL, Study
from mmorepa.lab.benchmark.plan import KernelCase, NetworkCase
from mmorepa.lab.benchmark.results import CaseResult, Measured
from support import ROOT

MIB = 2**20

targets = SimpleNamespace(**runpy.run_path(str(ROOT / 'tools' / 'targets.py')))


def as_planned(cases):
    """Results without numbers for a plan."""
    found = []
    for case in cases:
        names = (
            [FLOOR, KERNEL, RELEASED_KERNEL]
            if isinstance(case, KernelCase)
            else [subject.name for subject in case.subjects]
        )
        subjects = [measured(name, sent=dict(allreduce=MIB)) for name in names]
        found.append(CaseResult(case.describe(), subjects))
    return results(*found, preset='targets')


@pytest.mark.parametrize('with_released', [False, True])
def test_plan_has_every_target(with_released):
    plan = targets.plan(on_gpu=True, with_released=with_released)
    rows = targets.rows(as_planned(plan))
    # The released code's steps of two networks, and its kernel, which the made-up results have.
    assert len(rows) == len(targets.TARGETS) - 2 * (not with_released)
    assert all(row.found for row in rows)


def test_rows_of_a_gpu_are_not_measured_without_one():
    plan = targets.plan()
    assert all(case.setup.device == 'cpu' for case in plan)
    missing = [row for row in targets.rows(as_planned(plan)) if row.found is None]
    assert [row.target.at_most for row in missing] == 2 * [1.12, 1.08] + 2 * [1.05, 1.04]
    assert all(row.is_met is None for row in missing)


def test_rows_of_a_cpu_are_not_measured_on_a_gpu_alone():
    plan = targets.plan(on_cpu=False, on_gpu=True)
    assert all(case.setup.device == 'cuda' for case in plan)
    rows = targets.rows(as_planned(plan))
    missing = {row.target.what for row in rows if row.found is None}
    assert missing == {
        'training step: OREPA over plain',
        'training step: OREPA-squeezed over OREPA',
        'training step of 4 micro-batches: OREPA-squeezed over plain',
        'training step of 2 processes: OREPA-shared-out over plain',
        'evaluation step in training form: OREPA over plain',
    }


def test_setups():
    plan = targets.plan(on_gpu=True)
    on_gpu = [case for case in plan if case.setup.device == 'cuda']
    assert {case.batch for case in on_gpu} == {64, 256}
    assert all(case.setup.amp and case.setup.channels_last for case in on_gpu)
    kernels = [case for case in plan if isinstance(case, KernelCase)]
    assert {(c.in_channels, c.kernel_size) for c in kernels} == {
        *((c, k) for c in (64, 128, 256, 512) for k in (1, 3)),
        (3, 7),
    }
    for case in plan:
        if isinstance(case, NetworkCase):
            names = ['none', 'OREPA', 'OREPA-squeezed', 'OREPA-shared-out']
            count = {targets.FROZEN: 2, targets.TOGETHER: 4}.get(case.purpose, 3)
            assert [subject.name for subject in case.subjects] == names[:count]
            assert case.processes == (2 if case.purpose == targets.TOGETHER else 1)
            assert case.accumulate == (4 if case.purpose == targets.ACCUMULATED else 1)


def row_of(result, what):
    found = [row for row in targets.rows(results(result)) if row.result is not None]
    return next(row for row in found if row.target.what == what)


class TestRatios:
    def test_step(self):
        result = network_result(measured('none'), measured('OREPA', 1.38), purpose=targets.STEP)
        row = row_of(result, 'training step: OREPA over plain')
        assert row.found.median == pytest.approx(1.38)
        assert row.target.at_most == 1.40
        assert row.is_met

    def test_released_step_has_no_target(self):
        result = network_result(
            measured('none'), measured('released-OREPA', 2), purpose=targets.STEP
        )
        row = row_of(result, 'training step: released-OREPA over plain')
        assert row.found.median == pytest.approx(2)
        assert row.is_met is None

    def test_gpu_step(self):
        result = network_result(
            measured('none'),
            measured('OREPA', 1.05),
            network='resnet50',
            batch=256,
            setup=GPU,
            purpose=targets.GPU_STEP,
        )
        row = row_of(result, 'training step on a GPU: OREPA over plain')
        assert row.target.at_most == 1.04
        assert row.is_met is False

    def test_generation(self):
        result = kernel_result(
            measured(FLOOR), measured(KERNEL, 1.3), channels=512, purpose=targets.GENERATION
        )
        row = row_of(result, 'kernel generation over its floor')
        assert row.found.median == pytest.approx(1.3)
        assert row.is_met

    def test_evaluation(self):
        result = network_result(measured('none'), measured('OREPA', 2), purpose=targets.STEP)
        row = row_of(result, 'evaluation step in training form: OREPA over plain')
        assert row.found.median == pytest.approx(2)

    def test_squeezed_over_online(self):
        subjects = measured('none'), measured('OREPA', 1.5), measured('OREPA-squeezed', 1.35)
        result = network_result(*subjects, purpose=targets.STEP)
        row = row_of(result, 'training step: OREPA-squeezed over OREPA')
        assert row.found.median == pytest.approx(0.9)
        assert row.is_met

    def test_processes(self):
        plain = measured('none', sent=dict(allreduce=10, broadcast=2))
        ours = measured('OREPA-shared-out', 1.2, sent=dict(allreduce=10, broadcast=8))
        result = network_result(plain, ours, processes=2, purpose=targets.TOGETHER)
        row = row_of(result, 'training step of 2 processes: OREPA-shared-out over plain')
        assert (row.target.at_most, row.is_met) == (1.20, True)
        row = row_of(result, 'bytes sent by 2 processes: OREPA-shared-out over plain')
        assert row.found.median == 1.5

    @pytest.mark.parametrize('stages, at_most', [(4, 1.00), (2, None)])
    def test_frozen(self, stages, at_most):
        result = network_result(
            measured('none'),
            measured('OREPA', 1.004),
            frozen_stages=stages,
            purpose=targets.FROZEN,
        )
        row = [row for row in targets.rows(results(result)) if row.result is not None][0]
        assert row.target.at_most == at_most
        assert row.is_met is (None if at_most is None else True)

    def test_memory_by_what_is_saved(self):
        ours, plain = measured('OREPA', generation=True), measured('none')
        result = network_result(plain, ours, batch=64, purpose=targets.MEMORY)
        what = 'memory less parameters, gradients, optimizer state: OREPA over plain'
        assert row_of(result, what).found.median == 1.2
        assert row_of(result, 'activations alone: OREPA over plain').found.median == 1.0

    def test_memory_by_the_peak_of_a_gpu(self):
        ours, plain = measured('OREPA', generation=True), measured('none')
        ours.bytes['peak'], plain.bytes['peak'] = 160 * MIB, 110 * MIB
        result = network_result(plain, ours, batch=64, setup=GPU, purpose=targets.MEMORY)
        what = 'memory less parameters, gradients, optimizer state: OREPA over plain'
        assert row_of(result, what).found.median == 1.5

    @pytest.mark.parametrize('failed', ['none', 'OREPA'])
    def test_what_failed_is_not_measured(self, failed):
        subjects = [Measured(n) if n == failed else measured(n) for n in ('none', 'OREPA')]
        result = network_result(*subjects, purpose=targets.STEP)
        row = [row for row in targets.rows(results(result)) if row.result is not None][0]
        assert row.found is None
        assert row.is_met is None


def test_plan_can_be_run():
    """The preset as it is, but small."""
    small = dict(networks=['resnet18'], size=32, width=0.125, channels=[4])
    plan = targets.plan(**small)
    # Processes are for test_processes.py.
    left_out = (targets.MEMORY, targets.TOGETHER)
    plan = [case for case in plan if case.purpose not in left_out]
    rows = targets.rows(Study(plan, repeats=1, warm_up=0, preset='targets').run())
    found = {row.target.what for row in rows if row.found is not None}
    assert found == {
        'training step: OREPA over plain',
        'training step: OREPA-squeezed over plain',
        'training step: OREPA-squeezed over OREPA',
        'training step of 4 micro-batches: OREPA over plain',
        'training step of 4 micro-batches: OREPA-squeezed over plain',
        'kernel generation over its floor, stem',
        'evaluation step in training form: OREPA over plain',
        'training step, all stages frozen: OREPA over plain',
        'training step, two stages frozen: OREPA over plain',
    }


def test_what_is_printed():
    result = network_result(measured('none'), measured('OREPA', 1.45), purpose='step')
    rows = rows_of(targets.markdown(results(result)), 'Targets')[1:]
    assert rows[0] == [
        'training step: OREPA over plain',
        'resnet18, 8 × 224²',
        '≤ 1.40',
        '1.450',
        '**not met**',
    ]
    assert ['resnet18, batch 64, no GPU here', '≤ 1.12', 'not measured', ''] in [
        row[1:] for row in rows
    ]


@pytest.mark.parametrize('preset', ['targets', None])
def test_they_belong_to_their_preset(preset, tmp_path):
    result = network_result(measured('none'), measured('OREPA', 1.45), purpose='step')
    results(result, preset=preset).write(tmp_path / 'benchmark.json')
    text = command.show(tmp_path / 'benchmark.json', tmp_path, targets)
    assert text.startswith('## Targets\n') == (preset is not None)
    assert text == (tmp_path / 'benchmark.md').read_text()
    # An installed package has no targets.
    assert '## Targets' not in command.show(tmp_path / 'benchmark.json', tmp_path)
