"""What the records of several configs and seeds say together: a table, a picture, JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from statistics import mean, quantiles, stdev

from ... import writing
from .. import scaffold
from ..drawing import COLOURS, grid, new_figure
from .measured_run import WARM_UP
from .paired import CONFIDENCE, Difference, digits_of
from .rates import Choice
from .records import metric_of

#: How far a metric of the deploy form may be from the training form's, relative: on a large test
#: set rounding may turn a close decision or two, or the third digit, where a library stops.
DEPLOY_TOLERANCE = 2e-3

MARKS = 'osD^vP*X'

MIB = 2**20


@dataclass(frozen=True)
class Summary:
    """What the runs of one config say.

    Attributes:
        config (str): Its name.
        seeds (list[int]): Of the runs, as all lists below.
        values (list[float]): The metric of the training form.
        deploy_values (list[float]): The metric of the deploy form.
        steps (tuple[float, float, float]): Lower quartile, median and upper quartile of the
            seconds of an iteration, over those that the records of all runs keep.
        fast_step (float): What a twentieth of these iterations stay below: the step where nothing
            else disturbs it.
        iterations (float): Of a run, the mean: a hook may end some early.
        peak_bytes (list[int]): Peak memory in training.
        start_bytes (list[int]): Of it, when the first iteration began.
        parameters (tuple[int, int]): Of the training and the deploy form.
        relative (float): Largest relative difference of both forms' outputs on a probe image.
    """

    config: str
    seeds: list[int]
    values: list[float]
    deploy_values: list[float]
    steps: tuple[float, float, float]
    fast_step: float
    iterations: float
    peak_bytes: list[int]
    start_bytes: list[int]
    parameters: tuple[int, int]
    relative: float

    @property
    def mean(self) -> float:
        """Of the metric, over the seeds."""
        return mean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation of the metric; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def training_seconds(self) -> float:
        """Of a run, its steps all as fast as the fast step."""
        return self.iterations * self.fast_step

    @property
    def deploy_agrees(self) -> bool:
        """Whether the deploy form has the training form's metric in each run."""
        return all(
            abs(deploy - value) <= DEPLOY_TOLERANCE * abs(value)
            for value, deploy in zip(self.values, self.deploy_values)
        )


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
        metric (str): The metric that is compared.
        summaries (list[Summary]): One a config, those without a finished run left out.
        differences (list[Difference]): Of each other config to one of them, where they share
            seeds.
        choices (list[Choice]): The learning rates, where they were searched for.
        failures (list[str]): The runs that failed, and why.
        machines (dict[str, int]): What the runs ran on, with how many did.
        software (dict[str, int]): Likewise versions and commit.
        load (tuple[float, float]): Lowest and highest load average at the end of a training.
        finished (tuple[str, str]): When the first and the last run ended.
    """

    metric: str
    summaries: list[Summary]
    differences: list[Difference]
    choices: list[Choice]
    failures: list[str]
    machines: dict[str, int]
    software: dict[str, int]
    load: tuple[float, float]
    finished: tuple[str, str]


def summarize(
    records: Sequence[dict],
    failures: Sequence[str] = (),
    metric: str | None = None,
    against: str | None = None,
    choices: Sequence[Choice] = (),
) -> Report:
    """Put the records of a comparison together.

    Args:
        records (Sequence[dict]): See :func:`mmorepa.lab.comparison.measured_run.run`; at least one.
        failures (Sequence[str]): The runs that failed, a line each.
        metric (str, optional): What to compare. By default the first that the first run has.
        against (str, optional): The config that the others are compared with; without a finished
            run of it there are no differences. By default the first.
        choices (Sequence[Choice]): The learning rates, where they were searched for.

    Returns:
        Report: Configs in the order in which they come first.

    Raises:
        UserError: If a run does not have the metric.
    """
    metric = metric_of(records, metric)
    names = dict.fromkeys(record['config'] for record in records)
    finished = sorted(record['finished'] for record in records)
    loads = [record['load'] for record in records]
    summaries = {
        name: _summary([record for record in records if record['config'] == name], metric)
        for name in names
    }
    base = summaries.get(against or next(iter(names)))
    return Report(
        metric=metric,
        summaries=list(summaries.values()),
        differences=[
            _difference(summary, base, metric)
            for summary in summaries.values()
            if base not in (None, summary) and set(summary.seeds) & set(base.seeds)
        ],
        choices=list(choices),
        failures=list(failures),
        machines=dict(Counter(record['machine'] for record in records)),
        software=dict(Counter(record['software'] for record in records)),
        load=(min(loads), max(loads)),
        finished=(finished[0], finished[-1]),
    )


def _summary(records: Sequence[dict], metric: str) -> Summary:
    steps = [record['step_seconds'] for record in records]
    together = [seconds for run in steps for seconds in run]
    return Summary(
        config=records[0]['config'],
        seeds=[record['seed'] for record in records],
        values=[record['metrics'][metric] for record in records],
        deploy_values=[record['deploy_metrics'][metric] for record in records],
        steps=tuple(percentile(together, percent) for percent in (25, 50, 75)),
        fast_step=percentile(together, 5),
        iterations=mean(record['iterations'] for record in records),
        peak_bytes=[record['peak_bytes'] for record in records],
        start_bytes=[record['start_bytes'] for record in records],
        parameters=tuple(records[0]['parameters'][form] for form in ('training', 'deploy')),
        relative=max(record['relative'] for record in records),
    )


def _difference(one: Summary, other: Summary, metric: str) -> Difference:
    value, base = (dict(zip(summary.seeds, summary.values)) for summary in (one, other))
    seeds = [seed for seed in value if seed in base]
    return Difference(
        config=one.config,
        against=other.config,
        metric=metric,
        seeds=seeds,
        values=[value[seed] - base[seed] for seed in seeds],
        time=one.training_seconds / other.training_seconds,
        digits=digits_of(base.values()),
    )


def percentile(numbers: Sequence[float], percent: int) -> float:
    """What ``percent`` (1 to 99) of the numbers stay below; between two of them interpolated."""
    if len(numbers) == 1:
        return numbers[0]
    return quantiles(numbers, n=100, method='inclusive')[percent - 1]


def to_markdown(report: Report) -> str:
    """The table, and below it what the numbers are and what they were made with."""
    header = (
        'config',
        'seeds',
        f'{report.metric}: mean (lowest to highest) ± std',
        'deploy form: mean',
        'ms a step: median (quartiles), fastest 5 %',
        'peak memory, MiB (before the first step)',
        'parameters, M: training → deploy',
    )
    columns = [
        scaffold.Column(title, itemgetter(number), left=True) for number, title in enumerate(header)
    ]
    lines = scaffold.markdown_table(columns, map(_cells, report.summaries))
    if report.differences:
        lines += ['', *_differences(report.differences), '']
        lines += [f'- {difference.sentence}' for difference in report.differences]
    if report.choices:
        lines += ['', *_choices(report.choices)]
    lines += ['', *[f'- {note}' for note in _notes(report)]]
    return '\n'.join(lines) + '\n'


def _differences(differences: Sequence[Difference]) -> list[str]:
    columns = [
        scaffold.Column(f'against {differences[0].against}', lambda row: row.config, left=True),
        scaffold.Column('seeds', lambda row: ' '.join(map(str, row.seeds)), left=True),
        scaffold.Column('difference of each', lambda row: ' '.join(map(row.signed, row.values))),
        scaffold.Column('mean', lambda row: row.signed(row.mean)),
        scaffold.Column(
            f'{CONFIDENCE:.0%} interval of the mean',
            lambda row: ' to '.join(map(row.signed, row.interval or ())),
        ),
        scaffold.Column('training time', lambda row: f'{row.time:.2f}×'),
    ]
    return scaffold.markdown_table(columns, differences)


def _choices(choices: Sequence[Choice]) -> list[str]:
    """A row a config, a column a rate; the best in bold."""
    rates = sorted({rate for choice in choices for rate in choice.values})
    found = [value for choice in choices for value in choice.values.values()]
    digits = digits_of(value for value in found if value is not None)

    def column(rate: float) -> scaffold.Column:
        def cell(choice: Choice) -> str:
            if rate not in choice.values:
                return ''
            if (value := choice.values[rate]) is None:
                return 'failed'
            text = f'{value:.{digits}f}'
            return f'**{text}**' if rate == choice.rate else text

        return scaffold.Column(f'rate {rate:.12g}', cell)

    name = scaffold.Column('search', lambda choice: choice.config, left=True)
    return scaffold.markdown_table([name, *map(column, rates)], choices)


def _cells(summary: Summary) -> list[str]:
    steps = (*summary.steps, summary.fast_step)
    low, middle, high, fast = (scaffold.digits(1e3 * seconds) for seconds in steps)
    shown = f'.{digits_of(summary.values)}f'
    std = '' if summary.std is None else f' ± {summary.std:{shown}}'
    deploy = f'{mean(summary.deploy_values):{shown}}'
    lowest, highest = (f'{end(summary.values):{shown}}' for end in (min, max))
    peak, start = max(summary.peak_bytes) / MIB, max(summary.start_bytes) / MIB
    before, after = (number / 1e6 for number in summary.parameters)
    return [
        summary.config,
        ' '.join(map(str, summary.seeds)),
        f'{summary.mean:{shown}} ({lowest} to {highest}){std}',
        deploy if summary.deploy_agrees else f'**{deploy}, differs**',
        f'{middle} ({low} to {high}), {fast}',
        f'{peak:.0f} ({start:.0f})',
        f'{before:.3g} → {after:.3g}',
    ]


def _notes(report: Report) -> list[str]:
    relative = max(summary.relative for summary in report.summaries)
    on_gpu = all('no GPU' not in machine for machine in report.machines)
    memory = 'allocated on the GPU' if on_gpu else 'resident in the training process'
    several = len(report.machines) > 1 or len(report.software) > 1
    notes = [
        'std: sample standard deviation over the seeds. Deploy form: converted and tested; its '
        f'outputs on a probe image are apart by at most {relative:.1e} of the largest.',
        f'A step is a training iteration without the loading of its batch, the first {WARM_UP} of '
        f'a run left out; over the iterations of all runs, of which each record keeps some at '
        f'even ranks. Memory is what was {memory} '
        'at most in training; of several runs the highest.',
        *[
            what + (f' ({count} run{"s" * (count != 1)})' if several else '')
            for what, count in (*report.machines.items(), *report.software.items())
        ],
        f'Runs ended between {report.finished[0]} and {report.finished[1]}; load average of the '
        f'machine then: {report.load[0]} to {report.load[1]}.',
    ]
    notes += [
        f'The best rate of {choice.config} is the {choice.at_end} that was tried: the search is '
        'to be widened.'
        for choice in report.choices
        if choice.at_end
    ]
    return notes + [f'**FAILED** {failure}' for failure in report.failures]


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write all numbers of the table and those of each run; whole or not at all."""
    content = asdict(report)
    for summary, numbers in zip(report.summaries, content['summaries']):
        numbers.update(mean=summary.mean, std=summary.std, deploy_agrees=summary.deploy_agrees)
    for difference, numbers in zip(report.differences, content['differences']):
        numbers.update(mean=difference.mean, interval=difference.interval)
    for choice, numbers in zip(report.choices, content['choices']):
        numbers.update(rate=choice.rate)
    writing.write_json(content, path)


def write_plot(report: Report, path: str | os.PathLike) -> None:
    """Draw the metric against the time of training, as a PNG; written whole or not at all.

    A mark at the mean, a bar from the lowest to the highest seed, a dot for each run.
    """
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    names = short_names([summary.config for summary in report.summaries])
    for number, (summary, name) in enumerate(zip(report.summaries, names)):
        colour = COLOURS[number % len(COLOURS)]
        minutes = summary.training_seconds / 60
        runs = [minutes] * len(summary.values)
        axes.plot(runs, summary.values, '.', color=colour, alpha=0.5, markersize=5)
        axes.errorbar(
            minutes,
            summary.mean,
            yerr=[
                [summary.mean - min(summary.values)],
                [max(summary.values) - summary.mean],
            ],
            fmt=MARKS[number % len(MARKS)],
            color=colour,
            capsize=3,
            linewidth=1.2,
            label=name,
        )
    axes.set_xlabel(
        'training time, minutes: iterations times the fastest 5 % of steps\n'
        + '; '.join(report.machines)
    )
    axes.set_ylabel(f'{report.metric}: mean (mark),\nlowest to highest seed (bar), a run (dot)')
    axes.set_xlim(left=0)
    grid(axes)
    figure.legend(loc='outside right upper', fontsize=9)
    writing.write_figure(figure, path)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without what all of them end in after an underscore.

    Example:
        >>> short_names(['resnet18_1xb64_digits', 'dbb-resnet18_1xb64_digits'])
        ['resnet18', 'dbb-resnet18']
    """
    parts = [name.split('_') for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ['_'.join(part) for part in parts]
