"""What a benchmark found, as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...writing import write_figure
from ..drawing import grid, legend_below, logarithmic, new_figure, rows_down
from ..scaffold import digits
from .growth import AXES, Line, lines
from .plan import Setup
from .results import CaseResult, Measured, Results
from .spread import Spread

MIB, GIB = 2**20, 2**30

#: Of the subjects that are met often: colours that colour-blind readers can tell apart (Okabe and
#: Ito's), marks, and what they are, for readers who see the picture alone.
KNOWN = {
    'none': ('#555555', 'o', 'the plain network'),
    'floor': ('#555555', 'o', 'the matrix products that cannot be avoided'),
    'DBB': ('#e69f00', 's', 'branches with BatchNorms, over the feature map'),
    'OREPA': ('#0072b2', 'D', 'one kernel, generated in each forward pass'),
    'online': ('#0072b2', 'D', 'the branches made into one kernel first'),
    'OREPA-offline': ('#d55e00', '^', 'every branch over the feature map'),
    'offline': ('#d55e00', '^', 'every branch over the feature map'),
    'released-DBB': ('#cc79a7', 'v', 'the code of the paper'),
    'released-OREPA': ('#009e73', 'P', 'the code of the paper'),
    'OREPA-squeezed': ('#56b4e9', '*', 'one kernel, generated once a step'),
    'OREPA-shared-out': ('#000000', '<', 'squeezed, shared out among processes'),
}
OTHER_LOOKS = (('#7570b3', '>'), ('#e7298a', 'p'), ('#66a61e', 'h'), ('#666666', 'd'))

#: What can be varied, as it stands below an axis.
ALONG = {
    'batch': 'images in a batch',
    'size': 'height and width of an image, pixels',
    'width': 'factor on the channels of all layers',
}

#: The parts of a training step, what they are called, and their colours.
PARTS = {
    'forward': ('forward', '#56b4e9'),
    'backward': ('backward', '#0072b2'),
    'generation': ('generating kernels and pulling back', '#d55e00'),
    'optimizer': ('optimizer', '#999999'),
}


def write_pictures(results: Results, folder: str | os.PathLike) -> list[Path]:
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
            write_figure(figure, path)
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
        groups = _rungs(cases[0])
        heading = f'{heading_of(cases[0])}: each component is added to those on its left'
    else:
        groups = {
            heading_of(result).replace(', ', '\n'): {s.name: s for s in trained(result)}
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
    figure = new_figure(width, 5)
    left, right = figure.subplots(1, 2)
    for axes, number_of in ((left, memory_of), (right, time_of)):
        series = {name: [number_of(g.get(name)) for g in groups.values()] for name in names}
        _draw_bars(axes, list(groups), series)
    counts_peak = any('peak' in subject.bytes for subject in measured)
    counted = 'peak of the GPU' if counts_peak else 'counted tensors'
    left.set_title('Memory that a training step keeps')
    left.set_ylabel(f'{unit}, {counted}')
    right.set_title('Time that a training step takes')
    right.set_ylabel('seconds: median, quartiles')
    figure.suptitle(heading, fontsize=10)
    legend_below(figure, left)
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
        axes.bar([0], [0], color=colour, label=explained(name))
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
    _open(axes, 'y')


def split(results: Results) -> Figure | None:
    """The parts of a step of each subject in each network, stacked."""
    cases = base_cases(results, 'train')
    if not cases:
        return None
    counts = [len(trained(result)) for result in cases]
    height = 1.2 + 0.7 * len(cases) + 0.36 * sum(counts)
    figure = new_figure(10, height)
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axes, result in zip(panels, cases):
        _draw_parts(axes, trained(result))
        axes.set_title(heading_of(result), fontsize=10, loc='left')
    panels[-1].set_xlabel(
        'a training step, ms: medians of its parts, and as a number the median of the whole step'
    )
    legend_below(figure, panels[0])
    return figure


def _draw_parts(axes: Axes, subjects: Sequence[Measured]) -> None:
    ends = [0.0] * len(subjects)
    for part, (name, colour) in PARTS.items():
        spreads = [subject.spread(part) for subject in subjects]
        # Measured by itself, generation may leave less than nothing of the part it is in.
        values = [max(1e3 * found.median, 0.0) if found else 0.0 for found in spreads]
        drawn = axes.barh(
            range(len(values)), values, left=ends, color=colour, label=name, height=0.7
        )
        ends = [a + b for a, b in zip(ends, values)]
    wholes = [digits(1e3 * subject.spread('step').median) for subject in subjects]
    axes.bar_label(drawn, wholes, padding=3, fontsize=8)
    rows_down(axes, [explained(subject.name, '\n') for subject in subjects])
    axes.set_xlim(0, 1.08 * max(ends))
    _open(axes, 'x')


def growth(results: Results) -> Figure | None:
    """Step time, and its ratio to the first subject's, against batch, resolution and width."""
    found = lines(results)
    if not found:
        return None
    columns = [(axis, [line for line in found if line.axis == axis]) for axis in AXES]
    columns = [(axis, along) for axis, along in columns if along]
    networks = list(dict.fromkeys(line.network for line in found))
    figure = new_figure(1.5 + 4 * len(columns), 6.6)
    panels = figure.subplots(2, len(columns), squeeze=False, sharex='col', sharey='row')
    for (upper, lower), (axis, along) in zip(panels.T, columns):
        for line in along:
            _draw_line(upper, lower, line, networks)
        values = sorted({value for line in along for value in line.values})
        upper.set_title(_fixed(along[0], networks), fontsize=10)
        lower.set_xlabel(ALONG[axis])
        _logarithmic(upper, lower, values)
    base = found[0].names[0]
    panels[0, 0].set_ylabel('a training step, ms\n(dashed: generating the kernels)')
    meaning = KNOWN[base][2] if base in KNOWN else base
    panels[1, 0].set_ylabel(f'times the step of\n{meaning}')
    figure.suptitle('How the cost of a training step grows', fontsize=11)
    legend_below(figure, panels[0, 0])
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
        _draw_spreads(upper, line.values, steps, label=explained(name) + suffix, **look)
        made = [subject.spread('generation') for subject in line.of(name)]
        if line.axis in ALONG and all(made):
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
    figure = new_figure(1.5 + 4 * len(by_size), 6.6)
    panels = figure.subplots(2, len(by_size), squeeze=False, sharex='col', sharey='row')
    for (upper, lower), (size, cases) in zip(panels.T, by_size.items()):
        cases.sort(key=lambda result: result.case['in_channels'])
        line = Line('in_channels', f'{size}×{size} kernels', cases)
        _draw_line(upper, lower, line, [line.network])
        upper.set_title(f'{size}×{size} kernels', fontsize=10)
        lower.set_xlabel('input channels, and as many output channels')
        _logarithmic(upper, lower, line.values)
    panels[0, 0].set_ylabel('generating a kernel and\npulling its gradient back, ms')
    panels[1, 0].set_ylabel('times the floor')
    figure.suptitle('What generating one kernel costs', fontsize=11)
    legend_below(figure, *panels[0])
    return figure


def look_of(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and mark of a subject among others."""
    if name in KNOWN:
        return KNOWN[name][:2]
    others = [other for other in names if other not in KNOWN]
    return OTHER_LOOKS[others.index(name) % len(OTHER_LOOKS)]


def explained(name: str, between: str = ' ') -> str:
    """The name of a subject, and what it is where that is known."""
    return f'{name}{between}({KNOWN[name][2]})' if name in KNOWN else name


def heading_of(result: CaseResult) -> str:
    """The condition of a case, with the computing."""
    label = result.label.replace(' × ', ' images of ')
    return f'{label}, {Setup(**result.case["setup"])}'


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
        axes.minorticks_off()
        logarithmic(axes.yaxis, *axes.get_ylim())
        _open(axes, 'both')


def _open(axes: Axes, axis: str) -> None:
    """A grid along an axis, and no frame above and at the right."""
    grid(axes, axis)
    axes.spines[['top', 'right']].set_visible(False)
