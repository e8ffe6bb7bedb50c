"""Pictures of a report: noise and accuracy layer by layer, and the ranges of channels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...writing import write_figure

if TYPE_CHECKING:
    from .layer_report import LayerReport

#: Colours that colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#555555'


def draw_layers(report: LayerReport, path: str | os.PathLike) -> None:
    """Peaks, signal-to-quantization-noise ratios and what is lost, a row a layer, as a PNG."""
    layers = report.found.layers
    rows = range(len(layers))
    figure = Figure(figsize=(13, 2.2 + 0.24 * len(layers)), layout='constrained', dpi=110)
    peaks, noise, lost = figure.subplots(1, 3, sharey=True, width_ratios=(3, 4, 2))

    before = [layer.unfolded['peak'] if layer.unfolded else math.nan for layer in layers]
    peaks.plot(before, rows, 'o', color=GREY, markerfacecolor='white', label='before folding')
    peaks.plot([layer.peak for layer in layers], rows, 'o', color=BLUE, label='folded')
    peaks.set_xlabel('largest weight over their standard deviation')

    for key, label, marker, colour in (
        ('weight_sqnr', 'weight, a scale a channel', 'o', BLUE),
        ('tensor_weight_sqnr', 'weight, one scale', 's', ORANGE),
        ('input_sqnr', 'input', '^', GREEN),
        ('network_sqnr', "network's output", 'D', 'black'),
    ):
        noise.plot(
            [getattr(layer, key) for layer in layers], rows, marker, color=colour, label=label
        )
    noise.axvline(report.found.all_sqnr, color='black', linestyle='--', label='all layers in int8')
    noise.set_xlabel('signal to quantization noise in dB')

    values = [report.lost(layer.metrics) for layer in layers]
    lost.barh(rows, values, color=BLUE, height=0.6)
    lost.axvline(0, color='black', linewidth=0.8)
    lost.set_xlabel(f'{report.metric} lost' if report.metric else 'not evaluated')
    lost.xaxis.set_major_locator(MaxNLocator(4))
    if not any(values) or math.isnan(values[0]):
        lost.set_xlim(-1, 1)
        lost.text(0.05, (len(layers) - 1) / 2, 'nothing' if report.metric else '-')

    peaks.set_yticks(rows, [layer.name for layer in layers], fontsize=8)
    peaks.set_ylim(len(layers) - 0.4, -0.6)
    for axes in (peaks, noise, lost):
        _grid(axes)
    figure.suptitle(
        f'each layer alone in int8: {report.config}, {report.checkpoint}, '
        f'{report.calibration} calibration images',
        fontsize=10,
    )
    handles = [axes.get_legend_handles_labels() for axes in (peaks, noise)]
    figure.legend(
        sum((h for h, _ in handles), []),
        sum((names for _, names in handles), []),
        loc='outside lower center',
        ncols=4,
        fontsize=8,
    )
    write_figure(figure, path)


def draw_ranges(
    reports: Sequence[LayerReport], path: str | os.PathLike, titles: Sequence[str] = ()
) -> None:
    """Each output channel's largest magnitude in standard deviations, networks side by side."""
    names = [layer.name for layer in reports[0].found.layers]
    figure = Figure(
        figsize=(max(8, 2.6 + 3.2 * len(reports)), 1.8 + 0.24 * len(names)),
        layout='constrained',
        dpi=110,
    )
    all_axes = figure.subplots(1, len(reports), sharex=True, sharey=True, squeeze=False)[0]
    titles = titles or [f'{report.config}, {report.checkpoint}' for report in reports]
    for axes, report, title in zip(all_axes, reports, titles):
        for row, layer in enumerate(report.found.layers):
            deviation = max(layer.channel_peaks) / layer.peak
            peaks = [peak / deviation for peak in layer.channel_peaks]
            axes.plot(peaks, [row] * len(peaks), '|', color=BLUE, markersize=7, alpha=0.5)
            axes.plot(median(peaks), row, 'D', color=ORANGE, markersize=4)
        axes.set_xscale('log', base=2)
        axes.xaxis.set_major_formatter('{x:g}')
        axes.set_title(title, fontsize=9)
        _grid(axes)
    all_axes[0].set_yticks(range(len(names)), names, fontsize=8)
    all_axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(
        'largest magnitude in each output channel of the folded weight, '
        'over its standard deviation; diamond: median channel',
        fontsize=9,
    )
    write_figure(figure, path)


def _grid(axes: Axes) -> None:
    axes.grid(color='#dddddd', linewidth=0.5)
    axes.set_axisbelow(True)
