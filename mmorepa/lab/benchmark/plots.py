"""What a benchmark found, as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from ...checkpoints.files import written_whole
from .growth import AXES, Line, lines
from .plan import Setup
from .results import CaseResult, Measured, Results
from .spread import Spread, digits

MIB, GIB = 2**20, 2**30

#: Colours that colour-blind readers can tell apart (Okabe and Ito's), and marks: of the subjects
#: that are met often, and of others.
LOOKS = {
    'none': ('#555555', 'o'),
    'floor': ('#555555', 'o'),
    'DBB': ('#e69f00', 's'),
    'OREPA': ('#0072b2', 'D'),
    'online': ('#0072b2', 'D'),
    'OREPA-offline': ('#d55e00', '^'),
    'offline': ('#d55e00', '^'),
    'released-DBB': ('#cc79a7', 'v'),
    'released-OREPA': ('#009e73', 'P'),
    'OREPA-squeezed': ('#56b4e9', '*'),
    'OREPA-shared-out': ('#000000', '<'),
}
OTHER_LOOKS = (('#7570b3', '>'), ('#e7298a', 'p'), ('#66a61e', 'h'), ('#666666', 'd'))

#: The parts of a training step, what they are called, and their colours.
PARTS = {
    'forward': ('forward', '#56b4e9'),
    'backward': ('backward', '#0072b2'),
    'generation': ('generating kernels and pulling back', '#d55e00'),
    'optimizer': ('optimizer', '#999999'),
}


def write_plots(results: Results, folder: str | os.PathLike) -> list[Path]:
    """Draw what there are numbers for; each picture is written whole or not at all.

    Args:
        results (Results): See there.
        folder (str | os.PathLike): Where to.

    Returns:
        list[Path]: The pictures: ``bars.png``, the paper's bars of training memory and training
        time; ``split.png``, the parts of a step; ``growth.png``, cost against batch, resolution
        and width; ``kernels.png``, generating a kernel against its floor.
    """
    written = []
    for name, draw in dict(bars=bars, split=split, growth=growth, kernels=kernels).items():
        figure = draw(results)
        if figure is not None:
            path = Path(folder, f'{name}.png')
            with written_whole(path) as temporary:
                figure.savefig(temporary, format='png')
            written.append(path)
    return written


def base_cases(results: Results, *measures: str) -> list[CaseResult]:
    """The first case of each network and setup, without frozen stages, that has all measures."""
    found: dict[tuple, CaseResult] = {}
    for result in results.of_kind('network'):
        case = result.case
        if case['frozen_stages'] < 0 and set(measures) <= set(case['measures']):
            same = case['network'], case['accumulate'], case['processes'], str(case['setup'])
            found.setdefault(same, result)
    return [result for result in found.values() if trained(result)]


def trained(result: CaseResult) -> list[Measured]:
    """The subjects that have a training step."""
    return [subject for subject in result.subjects if subject.samples('step')]


def bars(results: Results) -> Figure | None:
    """Training memory and training time of each subject in each network.

    In the paper's comparison of components: of each rung, offline and online.
    """
    cases = base_cases(results, 'train', 'memory')
    if not cases:
        return None
    heading = ''
    if any(subject.rung for subject in cases[0].subjects):
        groups, heading = _rungs(cases[0]), _heading(cases[0])
    else:
        groups = {
            _heading(result).replace(', ', '\n'): {s.name: s for s in trained(result)}
            for result in cases
        }
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    measured = [subject for group in groups.values() for subject in group.values()]
    highest = max((subject.training_bytes or 0 for subject in measured), default=0)
    unit, divisor = ('GiB', GIB) if highest >= GIB else ('MiB', MIB)

    def memory_of(subject: Measured | None) -> Spread | None:
        if subject is None or subject.training_bytes is None:
            return None
        return Spread(*[subject.training_bytes / divisor] * 5)

    def time_of(subject: Measured | None) -> Spread | None:
        return subject.spread('step') if subject else None

    width = max(8, 2.5 + 0.85 * len(groups) * len(names))
    figure = Figure(figsize=(width, 4.4), layout='constrained', dpi=120)
    left, right = figure.subplots(1, 2)
    for axes, number_of in ((left, memory_of), (right, time_of)):
        series = {name: [number_of(g.get(name)) for g in groups.values()] for name in names}
        _draw_bars(axes, list(groups), series)
    counts_peak = any('peak' in subject.bytes for subject in measured)
    left.set_title('Training memory')
    left.set_ylabel(f'{unit}, {"peak of the GPU" if counts_peak else "counted"}')
    right.set_title('Training time')
    right.set_ylabel('seconds a batch: median, quartiles')
    figure.suptitle(heading, fontsize=10)
    _legend(figure, left)
    return figure


def _rungs(result: CaseResult) -> dict[str, dict[str, Measured]]:
    """Rung by rung its offline and online subject; the plain network stands for both."""
    groups: dict[str, dict[str, Measured]] = {}
    for subject in trained(result):
        series = subject.name.partition(' ')[0]
        both = ('offline', 'online') if series == 'none' else (series,)
        groups.setdefault(subject.rung, {}).update(dict.fromkeys(both, subject))
    return groups


def _draw_bars(axes: Axes, groups: Sequence[str], series: dict[str, list[Spread | None]]) -> None:
    """Bars side by side in each group, their quartiles, and their medians above them."""
    share = 0.84 / len(series)
    for number, (name, spreads) in enumerate(series.items()):
        colour, _ = look_of(name, list(series))
        offset = (number - (len(series) - 1) / 2) * share
        axes.bar([0], [0], color=colour, label=name)
        for place, found in enumerate(spreads):
            if found is None:
                continue
            axes.bar(place + offset, found.median, share * 0.94, color=colour)
            if found.lower < found.upper:
                reach = [[found.median - found.lower], [found.upper - found.median]]
                look = dict(color='black', linewidth=1, capsize=2)
                axes.errorbar(place + offset, found.median, yerr=reach, **look)
            axes.annotate(
                digits(found.median),
                (place + offset, found.upper),
                xytext=(0, 2),
                textcoords='offset points',
                ha='center',
                fontsize=8,
            )
    axes.set_xticks(range(len(groups)), groups, fontsize=9)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    _rule(axes, 'y')


def split(results: Results) -> Figure | None:
    """The parts of a step of each subject in each network, stacked."""
    cases = base_cases(results, 'train')
    if not cases:
        return None
    counts = [len(trained(result)) for result in cases]
    height = 1.2 + 0.7 * len(cases) + 0.36 * sum(counts)
    figure = Figure(figsize=(10, height), layout='constrained', dpi=120)
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axes, result in zip(panels, cases):
        _draw_parts(axes, trained(result))
        axes.set_title(_heading(result), fontsize=10, loc='left')
    panels[-1].set_xlabel(
        'ms a training step: medians of its parts; the number is that of the step'
    )
    _legend(figure, panels[0])
    return figure


def _draw_parts(axes: Axes, subjects: Sequence[Measured]) -> None:
    ends = [0.0] * len(subjects)
    for part, (name, colour) in PARTS.items():
        spreads = [subject.spread(part) for subject in subjects]
        # Measured by itself, generation may leave less than nothing of the part it is in.
        values = [max(1e3 * found.median, 0.0) if found else 0.0 for found in spreads]
        axes.barh(range(len(values)), values, left=ends, color=colour, label=name, height=0.7)
        ends = [a + b for a, b in zip(ends, values)]
    for row, (end, subject) in enumerate(zip(ends, subjects)):
        axes.annotate(
            digits(1e3 * subject.spread('step').median),
            (end, row),
            xytext=(3, 0),
            textcoords='offset points',
            va='center',
            fontsize=8,
        )
    axes.set_yticks(range(len(subjects)), [subject.name for subject in subjects])
    axes.set_ylim(len(subjects) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * max(ends))
    _rule(axes, 'x')


def growth(results: Results) -> Figure | None:
    """Step time, and its ratio to the first subject's, against batch, resolution and width."""
    found = lines(results)
    if not found:
        return None
    columns = [(axis, [line for line in found if line.axis == axis]) for axis in AXES]
    columns = [(axis, along) for axis, along in columns if along]
    networks = list(dict.fromkeys(line.network for line in found))
    figure = Figure(figsize=(1.5 + 4 * len(columns), 6.2), layout='constrained', dpi=120)
    panels = figure.subplots(2, len(columns), squeeze=False, sharex='col', sharey='row')
    for (upper, lower), (axis, along) in zip(panels.T, columns):
        for line in along:
            _draw_line(upper, lower, line, networks)
        values = sorted({value for line in along for value in line.values})
        upper.set_title(_fixed(along[0], networks), fontsize=10)
        lower.set_xlabel(AXES[axis])
        _logarithmic(upper, lower, values)
    panels[0, 0].set_ylabel('ms a training step\n(dashed: generating kernels)')
    panels[1, 0].set_ylabel(f'over {found[0].names[0]}')
    _legend(figure, panels[0, 0])
    return figure


def _draw_line(upper: Axes, lower: Axes, line: Line, networks: Sequence[str]) -> None:
    base = line.names[0]
    number = networks.index(line.network)
    suffix = f', {line.network}' if len(networks) > 1 else ''
    for name in line.names:
        colour, mark = look_of(name, line.names)
        # Networks are told apart by how much of the line is there.
        look = dict(color=colour, marker=mark, markersize=5, alpha=1 / (1 + number))
        steps = [subject.spread('step').times(1e3) for subject in line.of(name)]
        _draw_spreads(upper, line.values, steps, label=name + suffix, **look)
        made = [subject.spread('generation') for subject in line.of(name)]
        if all(made):
            medians = [1e3 * found.median for found in made]
            upper.plot(line.values, medians, '--', color=colour, linewidth=1, alpha=look['alpha'])
        ratios = [result[name].ratio(result[base]) for result in line.cases]
        _draw_spreads(lower, line.values, ratios, **look)


def _fixed(line: Line, networks: Sequence[str]) -> str:
    """The condition that all cases of a line share."""
    case = line.cases[0].case
    words = dict(
        batch=f'batch {case["batch"]}', size=f'{case["size"]}²', width=f'width ×{case["width"]:g}'
    )
    shared = [text for axis, text in words.items() if axis != line.axis]
    return ', '.join(shared if len(networks) > 1 else [line.network, *shared])


def kernels(results: Results) -> Figure | None:
    """Generating a kernel with as many input as output channels, against its floor."""
    by_size: dict[int, list[CaseResult]] = {}
    for result in results.of_kind('kernel'):
        case = result.case
        if case['in_channels'] == case['out_channels'] and result.first.samples('step'):
            by_size.setdefault(case['kernel_size'], []).append(result)
    by_size = {size: found for size, found in sorted(by_size.items()) if len(found) > 1}
    if not by_size:
        return None
    figure = Figure(figsize=(1.5 + 4 * len(by_size), 6.2), layout='constrained', dpi=120)
    panels = figure.subplots(2, len(by_size), squeeze=False, sharex='col', sharey='row')
    for (upper, lower), (size, cases) in zip(panels.T, by_size.items()):
        cases.sort(key=lambda result: result.case['in_channels'])
        channels = [result.case['in_channels'] for result in cases]
        names = [
            subject.name
            for subject in cases[0].subjects
            if all(result[subject.name].samples('step') for result in cases)
        ]
        for name in names:
            colour, mark = look_of(name, names)
            look = dict(color=colour, marker=mark, markersize=5)
            steps = [result[name].spread('step').times(1e3) for result in cases]
            _draw_spreads(upper, channels, steps, label=name, **look)
            ratios = [result[name].ratio(result.first) for result in cases]
            _draw_spreads(lower, channels, ratios, **look)
        upper.set_title(f'{size}×{size} kernels', fontsize=10)
        lower.set_xlabel('channels, in and out')
        _logarithmic(upper, lower, channels)
    panels[0, 0].set_ylabel('ms, forward + backward')
    panels[1, 0].set_ylabel('over the floor')
    _legend(figure, *panels[0])
    return figure


def look_of(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and mark of a subject among others."""
    if name in LOOKS:
        return LOOKS[name]
    others = [other for other in names if other not in LOOKS]
    return OTHER_LOOKS[others.index(name) % len(OTHER_LOOKS)]


def _heading(result: CaseResult) -> str:
    return f'{result.label}, {Setup(**result.case["setup"])}'


def _draw_spreads(axes: Axes, x: Sequence[float], spreads: Sequence[Spread], **look) -> None:
    """Medians, joined by a line, and quartiles."""
    medians = [found.median for found in spreads]
    below = [found.median - found.lower for found in spreads]
    above = [found.upper - found.median for found in spreads]
    axes.errorbar(x, medians, yerr=[below, above], capsize=2, linewidth=1.3, **look)


def _logarithmic(upper: Axes, lower: Axes, values: Sequence[float]) -> None:
    """Logarithmic scales: along, marked at the values; upwards, marked 1, 2, 5, 10 and so on."""
    for axes in (upper, lower):
        axes.set_xscale('log')
        axes.set_xticks(values, [f'{value:g}' for value in values])
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.minorticks_off()
        _rule(axes, 'both')


def _legend(figure: Figure, *panels: Axes) -> None:
    """Below the figure, what is labelled in any of the panels."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            found.setdefault(label, handle)
    labels, handles = list(found), list(found.values())
    # Inches that the longest takes: its handle, and its letters.
    widest = 0.6 + 0.085 * max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(figure.get_figwidth() / widest)))
    figure.legend(handles, labels, loc='outside lower center', ncols=columns)


def _rule(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color='#dddddd', linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
