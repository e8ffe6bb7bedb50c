"""Comparing configs over seeds: by the command as a user types it, and what it refuses."""

import io
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
from dataclasses import replace

import matplotlib.image
import pytest
import torch
from mmengine.runner import CheckpointLoader
from rich.console import Console

from mmorepa.checkpoints import load_checkpoint
from mmorepa.checkpoints.conversion import count_parameters
from mmorepa.checkpoints.files import load_from_local
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import switch_to_deploy
from mmorepa.datasets.digits import write_digits
from mmorepa.engine.run import build_runner, load_config
from mmorepa.errors import UserError
from mmorepa.lab.comparison import measured_run
from mmorepa.lab.comparison import study as compare
from mmorepa.lab.comparison.measured_run import Job, StepTimer
from mmorepa.writing import alone_in
from support import CONFIG, ROOT

SEEDS = (0, 1)
ITERATIONS = 3  # in the one epoch below
BATCH = 8

TINY = f"""
_base_ = ['{CONFIG}']

model = dict(backbone=dict(base_channels=4, stem_channels=4), head=dict(in_channels=32))
loader = dict(batch_size={BATCH}, num_workers=0, persistent_workers=False)
# Not serialised, which takes a second a data set.
train_dataloader = dict(
    **loader,
    dataset=dict(indices=list(range(0, {60 * BATCH * ITERATIONS}, 60)), serialize_data=False),
)
val_dataloader = dict(
    **loader, dataset=dict(indices=list(range(0, 350, 10)), serialize_data=False)
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.001))
"""

# Its first run is killed, as by a machine without memory; its second raises an error.
BROKEN = """
_base_ = ['./tiny.py']

# Imports would make it one of MMEngine's lazy configs.
if __import__('multiprocessing').parent_process():
    mark = __import__('pathlib').Path('killed')
    if mark.exists():
        raise ValueError('broken on purpose')
    mark.touch()
    __import__('os').kill(__import__('os').getpid(), 9)
"""

RECORDS = 'kept/records.json'
CONFIGS = ('tiny.py', 'broken.py', 'again.py')
OPTIONS = ('--cfg-options', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1')
# Of no consequence for the result: both configs are the same training.
OPTIONS_FOR = ('--cfg-options-for', 'ag*', 'train_cfg.val_interval=5')


def command(*arguments):
    return ROOT / 'tools' / 'compare.py', *arguments


@pytest.fixture(scope='module')
def workplace(tmp_path_factory, run_forked):
    """A folder in which the command ran, and what it printed there."""
    folder = tmp_path_factory.mktemp('compare')
    write_digits(folder / 'data' / 'digits', ['imagenet'], image_size=16)
    (folder / 'tiny.py').write_text(TINY)
    (folder / 'again.py').write_text("_base_ = ['./tiny.py']\n")
    (folder / 'broken.py').write_text(BROKEN)
    arguments = [*CONFIGS, '--seeds', *SEEDS, '--out', 'out', *OPTIONS, *OPTIONS_FOR]
    arguments += ['--records', RECORDS]
    (folder / 'first.log').write_text(run_forked(folder, *command(*arguments), code=1))
    return folder


@pytest.fixture(scope='module')
def table(workplace):
    return json.loads((workplace / 'out' / 'table.json').read_text())


def record(workplace, name, seed):
    return json.loads((workplace / 'out' / name / f'seed{seed}' / 'result.json').read_text())


def weights(workplace, name, seed):
    folder = workplace / 'out' / name / f'seed{seed}'
    return load_checkpoint(folder / 'epoch_1.pth')['state_dict']


def test_runs_go_seed_by_seed_and_failures_are_named(workplace):
    text = (workplace / 'first.log').read_text()
    lines = re.findall(r'^\[(\d)/6\] (\w+) seed (\d)( FAILED)?: (.*)$', text, re.MULTILINE)
    assert [(name, int(seed)) for _, name, seed, *_ in lines] == [
        (name, seed) for seed in SEEDS for name in ('tiny', 'broken', 'again')
    ]
    assert [name for _, name, _, failed, _ in lines if failed] == ['broken', 'broken']
    killed, raised = (reason for *_, failed, reason in lines if failed)
    assert killed == 'ended by SIGKILL; its log is out/broken/seed0/run.log'
    said = 'broken.py is no config that can be read: broken on purpose (ValueError) in line 8 of '
    assert raised.startswith(said)
    assert 'broken on purpose' in (workplace / 'out/broken/seed1/run.log').read_text()


def test_table(workplace, table):
    text = (workplace / 'out' / 'table.md').read_text()
    assert text in (workplace / 'first.log').read_text()
    first, *_ = text.split('\n\n')
    rows = [line.strip('| ').split(' | ') for line in first.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert rows[0][2].startswith('accuracy/top1')
    assert [row[:2] for row in rows[2:]] == [['tiny', '0 1'], ['again', '0 1']]
    assert '**FAILED** broken seed 0: ended by SIGKILL' in text
    for known in (torch.__version__, 'mmpretrain', 'mmorepa', 'core'):
        assert known in text
    assert table['metric'] == 'accuracy/top1'
    for summary, name in zip(table['summaries'], ('tiny', 'again')):
        records = [record(workplace, name, seed) for seed in SEEDS]
        assert summary['config'] == name
        assert summary['seeds'] == list(SEEDS)
        assert summary['values'] == [one['metrics']['accuracy/top1'] for one in records]
        assert summary['deploy_values'] == summary['values']
        assert summary['deploy_agrees']


def test_picture(workplace):
    pixels = matplotlib.image.imread(workplace / 'out' / 'figure.png')
    assert pixels.min() < 0.5 < pixels.max()


def test_what_a_run_records(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    model = build_model(load_config('tiny.py'))
    before = count_parameters(model)
    found = record(workplace, 'tiny', 0)
    assert found['parameters'] == dict(
        training=before, deploy=count_parameters(switch_to_deploy(model))
    )
    assert found['iterations'] == ITERATIONS
    assert len(found['step_seconds']) == ITERATIONS - ITERATIONS // 2  # a short run's second half
    assert 0 < sum(found['step_seconds']) < found['train_seconds']
    assert 2**26 < found['start_bytes'] <= found['peak_bytes']
    assert found['relative'] < 1e-4


def test_a_seed_says_it_all(workplace):
    """Two processes, one seed: the same weights; another seed: others."""
    for seed in SEEDS:
        assert (
            record(workplace, 'tiny', seed)['metrics']
            == (record(workplace, 'again', seed)['metrics'])
        )
        first, second = (weights(workplace, name, seed) for name in ('tiny', 'again'))
        assert all(torch.equal(first[key], second[key]) for key in first)
    other = weights(workplace, 'tiny', 1)
    first = weights(workplace, 'tiny', 0)
    assert not any(torch.equal(first[key], other[key]) for key in first if 'fc.weight' in key)


def test_options_reach_the_configs_they_are_for(workplace):
    assert record(workplace, 'again', 0)['cfg_options']['train_cfg.val_interval'] == '5'
    assert 'train_cfg.val_interval' not in record(workplace, 'tiny', 0)['cfg_options']
    assert record(workplace, 'tiny', 0)['cfg_options']['train_cfg.max_epochs'] == '1'


def test_a_second_call_trains_nothing(workplace, table, run_forked):
    results = sorted(workplace.glob('out/*/*/result.json'))
    before = [path.stat().st_mtime_ns for path in results]
    arguments = ['tiny.py', 'again.py', '--seeds', *SEEDS, '--out', 'out', *OPTIONS, *OPTIONS_FOR]
    text = run_forked(workplace, *command(*arguments))
    assert text.count(': done before, accuracy/top1 ') == len(results) == 4
    assert [path.stat().st_mtime_ns for path in results] == before
    again = json.loads((workplace / 'out' / 'table.json').read_text())
    assert again['summaries'] == table['summaries']
    assert again['failures'] == []


def test_another_place_goes_on_from_the_records(workplace, table, run_forked):
    """As in a checkout that has the file and no folder of runs."""
    kept = (workplace / RECORDS).read_text()
    assert len(kept.splitlines()) == 2 + 4  # a line a run
    arguments = ['again.py', 'tiny.py', '--seeds', *SEEDS, *OPTIONS, *OPTIONS_FOR]
    arguments += ['--out', 'elsewhere', '--records', RECORDS, '--against', 'tiny.py']
    arguments += ['--labels', 'it again', 'tiny, once']
    text = run_forked(workplace, *command(*arguments))
    assert text.count(': done before, accuracy/top1 ') == 4
    assert (workplace / RECORDS).read_text() == kept
    again = json.loads((workplace / 'elsewhere' / 'table.json').read_text())
    expected = table['summaries'][::-1]
    assert again['summaries'] == [
        {**one, 'config': label} for one, label in zip(expected, ('it again', 'tiny, once'))
    ]
    (difference,) = again['differences']
    assert (difference['config'], difference['against']) == ('it again', 'tiny, once')


@pytest.mark.parametrize('failed, pairs', [([0], [('again', 'tiny', [1])]), ([0, 1], [])], ids=str)
def test_the_first_config_is_the_baseline_also_where_it_fails(
    workplace, tmp_path, monkeypatch, failed, pairs
):
    def run_all(jobs, **options):
        lost = [(job, 'why') for job in jobs if job.name == 'tiny' and job.seed in failed]
        done = [job for job in jobs if (job, 'why') not in lost]
        return [record(workplace, job.name, job.seed) for job in done], lost

    monkeypatch.setattr(compare, 'run_all', run_all)
    monkeypatch.chdir(workplace)
    words = ['tiny.py', 'again.py', '--seeds', *map(str, SEEDS), '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['compare.py', *words])
    with pytest.raises(SystemExit, match='1'):
        runpy.run_path(command()[0], run_name='__main__')
    table = json.loads((tmp_path / 'table.json').read_text())
    assert [(d['config'], d['against'], d['seeds']) for d in table['differences']] == pairs
    assert [one['config'] for one in table['summaries']] == ['tiny', 'again'][len(failed) - 1 :]


@pytest.mark.parametrize('labels', [['one'], ['one', 'one']])
def test_labels_are_one_for_each_config(workplace, run_forked, labels):
    arguments = ['tiny.py', 'again.py', '--out', 'labelled', '--labels', *labels]
    text = run_forked(workplace, *command(*arguments), code=2)
    assert 'error: 2 configs want as many different --labels: ' in text


def test_a_config_is_compared_at_its_best_rate(workplace, run_forked):
    rates = (0.001, 0.02)
    arguments = ['tiny.py', '--seeds', 1, '--out', 'searched', *OPTIONS, '--rates', *rates]
    arguments += ['--rates-options', 'test_dataloader.dataset.indices=20']
    text = run_forked(workplace, *command(*arguments))
    tried = [
        json.loads((workplace / f'searched/tiny/lr{rate:g}/seed0/result.json').read_text())
        for rate in rates
    ]
    values = [one['metrics']['accuracy/top1'] for one in tried]
    best = rates[values.index(max(values))]
    assert [one['cfg_options']['test_dataloader.dataset.indices'] for one in tried] == ['20'] * 2
    found = json.loads((workplace / 'searched/tiny/seed1/result.json').read_text())
    assert found['cfg_options']['optim_wrapper.optimizer.lr'] == repr(best)
    assert 'test_dataloader.dataset.indices' not in found['cfg_options']
    (choice,) = json.loads((workplace / 'searched/table.json').read_text())['choices']
    assert (choice['rate'], choice['values']) == (best, dict(zip(map(str, rates), values)))
    assert '| search | rate 0.001 | rate 0.02 |' in text


class TestPlan:
    @pytest.fixture
    def configs(self, tmp_path):
        paths = [tmp_path / name for name in ('one.py', 'two.py')]
        for path in paths:
            path.write_text('model = dict(width=1)\n')
        return paths

    def test_seed_by_seed(self, configs, tmp_path):
        jobs = compare.plan(configs, [3, 1, 3], tmp_path)
        assert [(job.name, job.seed) for job in jobs] == [
            ('one', 3), ('two', 3), ('one', 1), ('two', 1)
        ]  # fmt: skip
        assert len({job.folder for job in jobs}) == 4

    def test_later_options_win(self, configs, tmp_path):
        options_for = [('*', {'model.width': 3}), ('two', {'model.width': 4, 'model.depth': 5})]
        jobs = compare.plan(configs, [0], tmp_path, {'model.width': 2, 'lr': 1}, options_for)
        assert jobs[0].cfg_options == {'model.width': 3, 'lr': 1}
        assert jobs[1].cfg_options == {'model.width': 4, 'lr': 1, 'model.depth': 5}

    def test_one_file_under_two_names(self, configs, tmp_path):
        options_for = [('wide', {'model.width': 4})]
        given = [configs[0], f'wide={configs[0]}']
        one, wide = compare.plan(given, [0], tmp_path, options_for=options_for)
        assert (one.name, wide.name) == ('one', 'wide')
        assert one.config == wide.config
        assert one.folder != wide.folder
        assert one.settings != wide.settings

    @pytest.mark.parametrize('text', ['a-w0.25_x', 'configs/a-w0.25_x.py', 'a-w0.25_x=other.py'])
    def test_a_name_may_have_a_point(self, text):
        assert compare.named(text)[0] == 'a-w0.25_x'

    @pytest.mark.parametrize(
        'change, same',
        [
            (dict(), True),
            (dict(seeds=[1]), True),
            (dict(cfg_options={'model.width': 1}), True),
            (dict(cfg_options={'model.width': 2}), False),
            (dict(cfg_options={'visualizer._scope_': 'mmpretrain', 'log_level': 'DEBUG'}), True),
            (dict(deterministic=True), False),
        ],
        ids=str,
    )
    def test_settings_are_what_a_run_depends_on(self, configs, tmp_path, change, same):
        usual = dict(configs=configs, seeds=[0], out=tmp_path)
        first, second = (compare.plan(**{**usual, **more})[0] for more in (dict(), change))
        assert first.settings
        assert (first.settings == second.settings) == same

    def test_settings_see_a_base(self, configs, tmp_path):
        configs[0].write_text("_base_ = ['./two.py']\n")
        before = compare.plan(configs[:1], [0], tmp_path)[0].settings
        configs[1].write_text('model = dict(width=2)\n')
        assert compare.plan(configs[:1], [0], tmp_path)[0].settings != before

    @pytest.mark.parametrize('keys', ["(0, 1): 'a'", "0: 'a', 'b': 'a'"])
    def test_settings_see_fields_whose_keys_are_no_texts(self, configs, tmp_path, keys):
        found = set()
        for text in (keys, keys, keys.replace("'a'", "'c'")):
            configs[0].write_text(f'palette = {{{text}}}\n')
            found.add(compare.plan(configs[:1], [0], tmp_path)[0].settings)
        assert '' not in found
        assert len(found) == 2

    def test_a_config_that_ends_the_process_is_left_to_its_run(self, configs, tmp_path):
        configs[0].write_text('raise SystemExit(3)\n')
        jobs = compare.plan(configs, [0], tmp_path)
        assert [bool(job.settings) for job in jobs] == [False, True]
        assert compare.imports_of(jobs) == set()

    @pytest.mark.parametrize(
        'names, options_for, message',
        [
            (['one.py', 'three.py'], [], r'no config at .*three\.py: check the path'),
            (['one.py', 'one.py'], [], r'are both called one: .* another name, OTHER=.*one\.py'),
            (['one.py', 'two.py'], [('t*e', {})], "no config is called 't[*]e': choose from one"),
        ],
    )
    def test_refuses(self, configs, tmp_path, names, options_for, message):
        with pytest.raises(UserError, match=message):
            paths = [tmp_path / name for name in names]
            compare.plan(paths, [0], tmp_path, options_for=options_for)


class TestRunAll:
    @pytest.fixture
    def job(self, tmp_path):
        return Job(str(tmp_path / 'none.py'), 'none', 0, str(tmp_path), settings='abc')

    @pytest.mark.parametrize(
        'content, message',
        [
            ('{"settings": "xyz", "iterations": 1}', 'was made with other settings'),
            ('{"settings"', 'is no record of a run'),
            ('[]', 'is no record of a run'),
            ('{}', 'is no record of a run'),
            ('{"settings": "abc"}', 'is no record of a run'),  # of an earlier version
        ],
    )
    def test_refuses_records_of_other_runs(self, job, tmp_path, content, message):
        (tmp_path / 'result.json').write_text(content)
        with pytest.raises(UserError, match=message):
            compare.run_all([job], Console(quiet=True))

    @pytest.fixture
    def finished(self, job, tmp_path):
        """Two jobs, the first of them done; the second has no config and would fail."""
        record = dict(
            config='none',
            seed=0,
            settings='abc',
            iterations=1,
            metrics=dict(aAcc=80.0, mIoU=20.0),
            step_seconds=[0.5],
            train_seconds=9.0,
        )
        (tmp_path / 'result.json').write_text(json.dumps(record))
        return [job, replace(job, seed=1, folder=str(tmp_path / 'second'))]

    @pytest.mark.parametrize('metric, shown', [(None, 'aAcc 80'), ('mIoU', 'mIoU 20')])
    def test_a_line_shows_the_metric_that_is_asked_for(self, finished, metric, shown):
        console = Console(file=io.StringIO())
        compare.run_all(finished[:1], console, metric=metric)
        text = '[1/1] none seed 0: done before, %s, 500 ms a step, 9 s'
        assert console.file.getvalue().strip() == text % shown

    @pytest.mark.parametrize('value', ['NaN', 'Infinity'])
    def test_a_metric_that_is_no_number_is_a_failed_run(self, finished, tmp_path, value):
        path = tmp_path / 'result.json'
        path.write_text(path.read_text().replace('20.0', value))
        assert compare.run_all(finished[:1], Console(quiet=True), metric='aAcc')[1] == []
        found, ((job, why),) = compare.run_all(finished[:1], Console(quiet=True), metric='mIoU')
        assert (found, job) == ([], finished[0])
        assert why.startswith(f'mIoU is {float(value)}: wanted a finite one')

    def test_a_metric_that_is_not_there_ends_it_after_a_run(self, finished):
        kept = []
        with pytest.raises(UserError, match="none has no metric 'mAP': .* from aAcc, mIoU"):
            compare.run_all(finished, Console(quiet=True), kept.append, 'mAP')
        assert [record['seed'] for record in kept] == [0]

    @pytest.mark.parametrize('gpu', [False, True])
    def test_nothing_asks_for_a_gpu_before_a_run_is_forked(self, monkeypatch, gpu):
        preloads = []
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
        monkeypatch.setattr(compare.CONTEXT, 'set_forkserver_preload', preloads.append)
        compare.run_all([], Console(quiet=True))
        assert preloads == [[] if gpu else [measured_run.__name__]]

    def test_two_commands_do_not_do_one_run(self, job, tmp_path, monkeypatch):
        # Another import of everything takes seconds.
        monkeypatch.setattr(compare, 'CONTEXT', multiprocessing.get_context('fork'))
        (tmp_path / 'run.log').write_text('of the other')
        with alone_in(tmp_path):
            why = compare.run_in_process(job, lambda part: None)
        assert why.startswith(f'{tmp_path} is where another training writes to: ')
        assert why.endswith('name another --out')
        assert (tmp_path / 'run.log').read_text().startswith('of the other')
        assert compare.run_in_process(job, lambda part: None).startswith('no config at ')
        assert 'another training' not in (tmp_path / 'run.log').read_text()

    def test_an_interrupt_ends_the_run(self, job, tmp_path):
        (tmp_path / 'none.py').write_text('import time\ntime.sleep(600)\n')
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                compare.run_all([job], Console(quiet=True))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert not multiprocessing.active_children()
        assert not (tmp_path / 'result.json').exists()


class TestMeasuring:
    @pytest.mark.parametrize(
        'seconds, kept',
        [
            ([5.0], [5.0]),
            ([9.0, 1.0], [1.0]),
            ([9.0] * 3 + [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
            ([99.0] * 10 + list(range(21, 0, -1)), list(range(1, 22))),
            ([99.0] * 10 + list(range(200, -1, -1)), list(range(0, 201, 10))),
        ],
    )
    def test_a_record_keeps_some_steps_at_even_ranks(self, seconds, kept):
        assert measured_run.spread(seconds) == kept

    def test_a_seed_is_the_same_data_whatever_the_model_draws(self, workplace, monkeypatch):
        """Both blocks see the same pictures in the same order, augmented alike."""
        monkeypatch.chdir(workplace)
        seen = []

        def train(self):
            loader = self.build_dataloader(self._train_dataloader)
            seen.append(torch.stack([image for batch in loader for image in batch['inputs']]))
            raise InterruptedError

        monkeypatch.setattr(measured_run.Runner, 'train', train)
        for reparam in (None, 'DBB'):
            for seed in SEEDS:
                folder = workplace / 'seen'
                folder.mkdir(exist_ok=True)
                options = {'model.backbone.reparam': reparam}
                with pytest.raises(InterruptedError):
                    measured_run.run(Job('tiny.py', 'x', seed, str(folder), cfg_options=options))
        assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
        assert not torch.equal(seen[0], seen[1])

    def test_a_run_trains_as_any_training_does(self, tmp_path, monkeypatch):
        """Also with a config that has none of these hooks."""

        def train(self):
            seen.update(type(hook).__name__ for hook in self.hooks)
            assert CheckpointLoader._schemes[''] is load_from_local
            raise InterruptedError

        seen = set()
        monkeypatch.setattr(measured_run.Runner, 'train', train)
        job = Job(str(CONFIG), 'x', 0, str(tmp_path), cfg_options=dict(custom_hooks=None))
        with pytest.raises(InterruptedError):
            measured_run.run(job)
        assert {'NonFiniteHook', 'LoadFromHook', 'AccumulatedGradientsHook'} < seen
        assert {'IterSeedHook', 'SqueezedTrainingHook'} < seen

    def test_the_timer_is_next_to_the_step(self, narrow_config, tmp_path):
        runner = build_runner(narrow_config(tmp_path))
        timer = StepTimer(lambda done: None)
        before = list(runner.hooks)
        timer.attach(runner)
        first, *between, last = runner.hooks
        assert between == before
        assert first.after_train_iter.__func__ is measured_run._After.after_train_iter
        assert last.before_train_iter.__func__ is measured_run._Before.before_train_iter

    @pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='Linux alone')
    def test_peak_memory_is_of_training(self):
        """What loading the data took and gave back is none of it."""
        before = measured_run.peak_bytes()
        block = torch.ones(2 * before, dtype=torch.uint8)
        del block
        timer = StepTimer(lambda done: None)
        timer.begin()
        assert timer.start_bytes <= measured_run.peak_bytes() < 2 * before

    def test_peak_memory_stays_when_it_is_given_back(self):
        before = measured_run.peak_bytes()
        # Twice the peak cannot hide below it.
        block = torch.ones(2 * before, dtype=torch.uint8)
        del block
        assert measured_run.peak_bytes() > 2 * before

    @pytest.mark.parametrize(
        'options, message',
        [
            ({'test_evaluator': None}, 'has no test_evaluator'),
            ({'train_dataloader': None}, 'has no train_dataloader'),
        ],
    )
    def test_refuses_before_training(self, tmp_path, options, message):
        with pytest.raises(UserError, match=message):
            measured_run.run(Job(str(CONFIG), 'x', 0, str(tmp_path), cfg_options=options))
