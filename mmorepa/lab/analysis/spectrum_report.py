"""What the frequency prior contributes to a network's kernels: measured, shown, written."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from mmengine.config import Config
from rich.table import Table

from ...convs.blocks.branch_kernels import branch_sums, measure
from ...convs.orepa.branches import Prior
from ...engine.networks import load_network
from ...errors import UserError
from .. import report as output
from .spectrum import (
    Filter,
    Spectrum,
    constant_share,
    distinct_filters,
    rows_and_columns_share,
    shares,
)
from .spectrum import measure as measure_spectra

#: Layers whose spectra are drawn.
SPECTRA = 4


@dataclass(frozen=True)
class Report:
    """What the frequency prior contributes.

    Attributes:
        title (str): Config and checkpoint.
        spectra (list[Spectrum]): Of each kernel, in the network's order.
        priors (dict[str, float]): The share of the prior branch in each sum of branches, see
            :mod:`mmorepa.convs.blocks.branch_kernels`; layers of a deep linear stem one by one.
        filters (dict[str, list[Filter]]): The filters that differ, by kernel size and channels.
    """

    title: str
    spectra: list[Spectrum]
    priors: dict[str, float]
    filters: dict[str, list[Filter]]


def study(cfg: Config, checkpoint: str | os.PathLike | None = None) -> Report:
    """Measure the spectrum of each kernel with and without its frequency prior.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form; by default as training
            starts, where the prior contributes nothing: its scale starts at zero.

    Returns:
        Report: See there.

    Raises:
        UserError: If no block has a frequency prior, or see
            :func:`mmorepa.engine.networks.load_network`.
    """
    network = load_network(cfg, checkpoint)
    spectra = measure_spectra(network.model)
    if not spectra:
        raise UserError(
            f'no block of {network.config} has a frequency prior: wanted OREPA blocks of 3x3 or '
            "more, with 'prior' among their branches"
        )
    priors, filters = {}, {}
    for found in branch_sums(network.model):
        for name, branch in found.branches.items():
            if isinstance(branch, Prior):
                gram = measure(found.branches)
                priors[found.name] = gram.shares[gram.names.index(name)]
                sizes = branch.kernel_size, branch.out_channels
                key = f'{sizes[0]}x{sizes[0]}, {sizes[1]} channels'
                filters[key] = distinct_filters(sizes[1], sizes[0])
    return Report(str(network), spectra, priors, filters)


def table(report: Report) -> Table:
    """A row a kernel: how much the prior changes it, and the energy at some frequencies."""
    shown = Table(
        title=f'frequency prior of {report.title}',
        caption='change: length of what the prior adds, over the length of the kernel; constant: '
        'energy at frequency (0, 0);\nalong one axis: at (u, 0) and (0, v), where the prior has '
        'its filters; parts of the energy with the prior, and without it',
    )
    columns = ('change', 'constant', 'without', 'along one axis', 'without')
    for column in ('layer', 'kernel'):
        shown.add_column(column, no_wrap=True)
    for column in columns:
        shown.add_column(column, justify='right', no_wrap=True)
    for spectrum in report.spectra:
        parts = [
            f'{part(energy):.2%}'
            for part in (constant_share, rows_and_columns_share)
            for energy in (spectrum.whole, spectrum.without)
        ]
        shown.add_row(output.short(spectrum.name), spectrum.kind, f'{spectrum.size:.2%}', *parts)
    return shown


def summary(report: Report) -> list[str]:
    """Where the prior contributes most, and which of its filters differ, a sentence a line."""
    sizes = {spectrum.name: spectrum.size for spectrum in report.spectra}
    largest = max(sizes, key=sizes.get)
    lines = [
        f'the prior changes a kernel by {output.mean_of(sizes.values()):.2%} of its length in the '
        f'mean, most in {largest}: {sizes[largest]:.2%}'
    ]
    for key, filters in report.filters.items():
        counts = ', '.join(f'{found.text} in {found.channels}' for found in filters)
        lines.append(f'filters of {key}: {counts}')
    return lines


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write all numbers; whole or not at all."""
    output.write_json(
        dict(
            network=report.title,
            layers=[dict(asdict(spectrum), size=spectrum.size) for spectrum in report.spectra],
            prior_shares=report.priors,
            filters={key: list(map(asdict, found)) for key, found in report.filters.items()},
        ),
        path,
    )


def write_plot(report: Report, path: str | os.PathLike) -> None:
    """Draw some spectra, the prior's filters, and what it changes over depth, as a PNG.

    Written whole or not at all.
    """
    chosen = [report.spectra[i] for i in output.spread_out(len(report.spectra), SPECTRA)]
    figure = Figure(figsize=(14, 13), layout='constrained', dpi=110)
    above, middle, below = figure.subfigures(3, 1, height_ratios=(2.4, 0.75, 1))
    draw_spectra(above, chosen)
    key, filters = next(iter(report.filters.items()))
    draw_filters(middle, key, filters)
    left, right = below.subplots(1, 2)
    names = [spectrum.name for spectrum in report.spectra]
    rows = range(len(names))
    left.bar(rows, [100 * spectrum.size for spectrum in report.spectra], color=output.COLOURS[0])
    left.set_ylim(0, max(left.get_ylim()[1], 1))
    left.set_ylabel("what the prior adds,\n% of the kernel's length")
    output.mark_layers(left, names)
    for part, label, colour in (
        (constant_share, 'constant', output.COLOURS[0]),
        (rows_and_columns_share, 'along one axis', output.COLOURS[1]),
    ):
        for energy, style, suffix in (('whole', 'o-', ''), ('without', 's:', ', without prior')):
            values = [100 * part(getattr(spectrum, energy)) for spectrum in report.spectra]
            look = dict(color=colour, markersize=4, label=label + suffix)
            right.plot(rows, values, style, **look)
    right.set_ylabel('% of the energy')
    right.set_ylim(bottom=0)
    output.legend_above(right, 4)
    output.mark_layers(right, names)
    figure.suptitle(f'frequency prior of {report.title}', fontsize=11)
    output.write_figure(figure, path)


def draw_spectra(figure: SubFigure, chosen: list[Spectrum]) -> None:
    """Draw three rows of spectra: with the prior, without it, and what it adds."""
    panels = figure.subplots(3, len(chosen), squeeze=False)
    for column, spectrum in zip(panels.T, chosen):
        for axes, energy, text in zip(
            column,
            (spectrum.whole, spectrum.without, spectrum.change),
            ('with the prior', 'without it', 'what it adds'),
        ):
            draw_spectrum(axes, shares(energy))
            axes.set_title(f'{output.short(spectrum.name)}: {text}', fontsize=9)
    figure.supylabel('frequency down the rows; in the boxes % of the energy', fontsize=9)
    figure.supxlabel('frequency along the columns', fontsize=9)


def draw_spectrum(axes: Axes, parts: list[list[float]]) -> None:
    """Draw the part of the energy at each frequency, in per cent."""
    if all(value != value for row in parts for value in row):
        axes.text(0.5, 0.5, 'nothing', ha='center', transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    highest = max(map(max, parts))
    axes.imshow(parts, cmap='viridis', vmin=0, vmax=highest)
    for i, row in enumerate(parts):
        for j, value in enumerate(row):
            colour = 'black' if value > 0.6 * highest else 'white'
            text = output.format_number(100 * value, 1)
            size = 9 if len(parts) <= 3 else 6
            axes.text(j, i, text, ha='center', va='center', fontsize=size, color=colour)
    axes.set_xticks(range(len(parts)))
    axes.set_yticks(range(len(parts)))
    axes.tick_params(labelsize=7)


def draw_filters(figure: SubFigure, key: str, filters: list[Filter]) -> None:
    """Draw the filters of the prior that differ, with how many channels have each."""
    shown = filters[:8]
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, found in zip(panels, shown):
        axes.imshow(found.values, cmap='RdBu_r', vmin=-1, vmax=1)
        for i, row in enumerate(found.values):
            for j, value in enumerate(row):
                text = output.format_number(value, 2)
                colour = 'white' if abs(value) > 0.6 else 'black'
                axes.text(j, i, text, ha='center', va='center', fontsize=8, color=colour)
        axes.set_title(f'{found.text}: {found.channels}', fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    more = '' if len(filters) == len(shown) else f', the first {len(shown)}'
    figure.suptitle(
        f'filters of the prior that differ by more than their sign, with their channels; {key}'
        f'{more}',
        fontsize=9,
    )
