"""A comparison's table, JSON and picture, from records with known numbers."""

import json
from statistics import median

import matplotlib.image
import pytest

from mmorepa.errors import UserError
from mmorepa.lab.comparison import summary as reports
from mmorepa.lab.comparison.rates import Choice

MACHINE = 'some CPU, 8 cores, 1 thread, no GPU'
SOFTWARE = 'torch 2.5.1 at commit abc'


def record(config, seed, value, deploy=None, **changes):
    """A run of 30 iterations, of which those that are kept take 1 to 20 ms."""
    return {
        **dict(
            config=config,
            seed=seed,
            metrics={'top1': value, 'top|5': 99.0},
            deploy_metrics={'top1': value if deploy is None else deploy, 'top|5': 99.0},
            relative=1e-7,
            parameters=dict(training=3_000_000, deploy=1_000_000),
            iterations=30,
            step_seconds=[(i + 1) / 1000 for i in range(20)],
            peak_bytes=(600 + seed) * 2**20,
            start_bytes=500 * 2**20,
            load=1.5,
            machine=MACHINE,
            software=SOFTWARE,
            finished=f'2026-01-0{1 + seed} 00:00:00',
        ),
        **changes,
    }


@pytest.fixture
def records():
    """Two configs, seed by seed."""
    values = dict(plain=(90.0, 93.0, 96.0), orepa=(97.0, 97.0, 97.0))
    return [
        record(config, seed, values[config][seed])
        for seed in range(3)
        for config in ('plain', 'orepa')
    ]


def rows(report):
    text = reports.to_markdown(report)
    return [line for line in text.splitlines() if line.startswith('|')]


class TestSummarize:
    def test_metric_over_the_seeds(self, records):
        plain, orepa = reports.summarize(records).summaries
        assert (plain.config, plain.seeds, plain.values) == ('plain', [0, 1, 2], [90, 93, 96])
        assert plain.mean == 93
        assert plain.std == pytest.approx(3)  # the sample's: divided by two, not by three
        assert (orepa.mean, orepa.std) == (97, 0)
        assert reports.summarize(records[:1]).summaries[0].std is None

    def test_steps(self, records):
        summary = reports.summarize(records[:1]).summaries[0]
        assert summary.steps == pytest.approx((0.00575, 0.0105, 0.01525))
        assert summary.fast_step == pytest.approx(0.00195)

    def test_steps_of_all_runs_count(self):
        runs = [record('x', 0, 1), record('x', 1, 1, step_seconds=[1.0] * 20)]
        summary = reports.summarize(runs).summaries[0]
        together = [*runs[0]['step_seconds'], *[1.0] * 20]
        assert summary.steps[1] == pytest.approx(median(together))

    @pytest.mark.parametrize('metric, value', [(None, 90), ('top1', 90), ('top|5', 99)])
    def test_metric_is_the_first_or_the_one_asked_for(self, records, metric, value):
        report = reports.summarize(records, metric=metric)
        assert report.metric == (metric or 'top1')
        assert report.summaries[0].values[0] == value

    def test_refuses_a_metric_that_is_not_there(self, records):
        with pytest.raises(UserError, match="plain has no metric 'mIoU': .* from top1, top|5"):
            reports.summarize(records, metric='mIoU')

    def test_differences_pair_the_seeds(self, records):
        extra = record('plain', 7, 0.0)
        (found,) = reports.summarize([*reversed(records), extra]).differences
        assert (found.config, found.against, found.metric) == ('plain', 'orepa', 'top1')
        assert dict(zip(found.seeds, found.values)) == {0: -7, 1: -4, 2: -1}

    def test_differences_to_the_config_asked_for(self, records):
        (found,) = reports.summarize(records, against='orepa').differences
        assert (found.config, found.values) == ('plain', [-7, -4, -1])

    def test_no_difference_without_a_common_seed(self):
        assert reports.summarize([record('x', 0, 1), record('y', 1, 1)]).differences == []

    def test_time_is_iterations_times_the_quiet_step(self):
        slow = [(2 * i + 2) / 1000 for i in range(20)]
        runs = [record('x', 0, 1), record('y', 0, 1, iterations=45, step_seconds=slow)]
        assert reports.summarize(runs).differences[0].time == pytest.approx(3)

    def test_a_run_that_a_hook_ends_early_counts_as_the_others(self):
        runs = [record('x', seed, 1, iterations=20 + 10 * seed) for seed in range(3)]
        for order in (runs, runs[::-1]):
            assert reports.summarize(order).summaries[0].iterations == 30

    def test_no_difference_to_what_has_no_finished_run(self, records):
        report = reports.summarize(records, against='dbb')
        assert report.differences == []
        assert [summary.config for summary in report.summaries] == ['plain', 'orepa']

    @pytest.mark.parametrize(
        'deploy, agrees', [(90.0, True), (90.05, True), (89.72, False), (0.0, False)]
    )
    def test_deploy_form(self, deploy, agrees):
        report = reports.summarize([record('x', 0, 90.0, deploy), record('x', 1, 90.0)])
        assert report.summaries[0].deploy_agrees == agrees
        assert ('differs' in rows(report)[2]) != agrees

    def test_what_runs_ran_on(self, records):
        records[3]['machine'] = 'another'
        records[4]['load'] = 4.0
        report = reports.summarize(records)
        assert report.machines == {MACHINE: 5, 'another': 1}
        assert report.software == {SOFTWARE: 6}
        assert report.load == (1.5, 4.0)
        assert report.finished == ('2026-01-01 00:00:00', '2026-01-03 00:00:00')
        text = reports.to_markdown(report)
        assert f'- {MACHINE} (5 runs)\n- another (1 run)\n' in text


class TestMarkdown:
    def test_a_row_a_config(self, records):
        header, rule, plain, orepa, *_ = rows(reports.summarize(records))
        assert header.count('|') == rule.count('|') == plain.count('|') == orepa.count('|')
        cells = [
            '0 1 2',
            '93.00 (90.00 to 96.00) ± 3.00',
            '93.00',
            '10.5 (5.75 to 15.2), 1.95',
            '602 (500)',
            '3 → 1',
        ]
        assert plain == f'| plain | {" | ".join(cells)} |'

    def test_differences_and_what_they_support(self, records):
        text = reports.to_markdown(reports.summarize(records))
        assert '| orepa | 0 1 2 | +7.00 +4.00 +1.00 | +4.00 | -3.45 to +11.45 | 1.00× |' in text
        assert '\n- orepa and plain cannot be told apart: +4.00 top1 on the mean of 3' in text

    def test_rates(self, records):
        choices = [Choice('plain', {0.1: 90.0, 0.2: 91.0}), Choice('orepa', {0.1: 93.0, 0.2: None})]
        text = reports.to_markdown(reports.summarize(records, choices=choices))
        assert '| search | rate 0.1 | rate 0.2 |' in text
        assert '| plain | 90.00 | **91.00** |\n| orepa | **93.00** | failed |' in text
        assert '\n- The best rate of plain is the highest that was tried:' in text
        assert '\n- The best rate of orepa is the lowest that was tried:' in text

    def test_a_slow_step_has_no_exponent(self):
        report = reports.summarize([record('x', 0, 1, step_seconds=[1.0594])])
        assert '| 1059 (1059 to 1059), 1059 |' in rows(report)[2]

    def test_one_seed_has_no_spread(self, records):
        assert '±' not in rows(reports.summarize(records[:1]))[2]

    def test_a_bar_in_a_name_is_no_border(self, records):
        assert '| top\\|5: mean' in rows(reports.summarize(records, metric='top|5'))[0]

    def test_failures_and_conditions(self, records):
        text = reports.to_markdown(reports.summarize(records, ['dbb seed 1: out of memory']))
        assert '\n- **FAILED** dbb seed 1: out of memory\n' in text
        assert f'\n- {SOFTWARE}\n' in text
        assert 'resident in the training process' in text

    def test_memory_of_a_gpu(self, records):
        for one in records:
            one['machine'] = 'some CPU, 8 cores, 1 thread, NVIDIA X'
        assert 'allocated on the GPU' in reports.to_markdown(reports.summarize(records))


def test_json_has_all_numbers(records, tmp_path):
    report = reports.summarize(records, ['dbb seed 1: out of memory'])
    reports.write_json(report, tmp_path / 'new' / 'table.json')
    content = json.loads((tmp_path / 'new' / 'table.json').read_text())
    assert content['metric'] == 'top1'
    assert content['failures'] == ['dbb seed 1: out of memory']
    plain = content['summaries'][0]
    assert plain['values'] == [90, 93, 96]
    assert (plain['mean'], plain['std'], plain['deploy_agrees']) == (93, 3, True)
    assert plain['peak_bytes'] == [600 * 2**20, 601 * 2**20, 602 * 2**20]
    assert plain['parameters'] == [3_000_000, 1_000_000]
    (difference,) = content['differences']
    assert (difference['values'], difference['mean']) == ([7, 4, 1], 4)
    assert difference['interval'] == pytest.approx([-3.452, 11.452], abs=1e-3)


def test_picture_has_each_config(records, tmp_path):
    """As many marks as configs: each in its own colour."""
    reports.write_plot(reports.summarize(records), tmp_path / 'table.png')
    pixels = matplotlib.image.imread(tmp_path / 'table.png')[..., :3]
    for colour, there in zip(reports.COLOURS[:3], (True, True, False)):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(pixels - wanted).max(-1) < 0.02).any() == there


@pytest.mark.parametrize(
    'names, short',
    [
        (['resnet18_1xb64_digits', 'dbb-resnet18_1xb64_digits'], ['resnet18', 'dbb-resnet18']),
        (['resnet18_digits', 'resnet18_coco'], ['resnet18_digits', 'resnet18_coco']),
        (['x_a_b', 'a_b'], ['x_a', 'a']),
        (['a', 'b'], ['a', 'b']),
        (['alone_1xb64'], ['alone_1xb64']),
    ],
)
def test_short_names(names, short):
    assert reports.short_names(names) == short
