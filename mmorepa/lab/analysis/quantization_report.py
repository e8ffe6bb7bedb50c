"""What 8 bits do to each layer of a network, as a report."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from ...checkpoints import load_model
from ...convs import squeeze
from ...deploy.quantization.calibration import calibration_images
from ...deploy.quantization.evaluation import TestSet, main_metric
from ...deploy.quantization.layers import Layer, Measurement, measure
from ...deploy.quantization.qat import is_qat, load_float
from ...engine.data import seed_of
from ...writing import check_out, write_figure
from ..drawing import COLOURS, GREY, grid, legend_below, new_figure, rows_down
from ..scaffold import Column, Report, format_number, short

#: What :meth:`QuantizationReport.write` puts into the folder.
FILES = ('layers.json', 'layers.png', 'ranges.png')
BLUE, ORANGE, GREEN = COLOURS[:3]


@dataclass(frozen=True)
class QuantizationReport(Report):
    """What 8 bits do to a checkpoint.

    Attributes:
        config (str): The config's file name.
        checkpoint (str): The checkpoint's file name.
        calibration (int): The number of images on which ranges were found and noise was measured.
        seed (int): The seed that drew the images.
        found (Measurement): What was measured.
    """

    config: str
    checkpoint: str
    calibration: int
    seed: int
    found: Measurement

    @property
    def metric(self) -> str | None:
        """The metric to compare by; None if there is none."""
        return main_metric(self.found.float_metrics) if self.found.float_metrics else None

    def lost(self, metrics: dict[str, float]) -> float:
        """How much of the float model's :attr:`metric` is lost; NaN if it was not evaluated."""
        if self.metric is None or not metrics:
            return math.nan
        return self.found.float_metrics[self.metric] - metrics[self.metric]

    @property
    def caption(self) -> str:
        """What the columns mean."""
        return (
            'weights, inputs: the smallest and the largest, inputs on the calibration images; '
            'peak: the largest weight over the standard deviation; spread: the largest channel '
            'over the median one; both before folding → folded;\n'
            'weight (a scale a channel | one scale), input, output, network: SQNR in dB;\n'
            f'lost: {self.metric or "not evaluated"}; '
            f'{self.calibration} calibration images, seed {self.seed}'
        )

    def heading(self) -> str:
        scales = 'a scale a channel' if self.found.per_channel else 'one scale a weight'
        return f'{self.config}, {self.checkpoint}: each layer alone in int8, {scales}'

    def columns(self) -> list[Column]:
        titles = ('weights', 'inputs', 'peak', 'spread', 'weight', 'input', 'output', 'network')
        return [
            Column('layer', itemgetter(0), left=True),
            *[Column(title, itemgetter(i)) for i, title in enumerate((*titles, 'lost'), 1)],
        ]

    def rows(self) -> list[list[str]]:
        """The cells of each layer, and of all layers together."""
        every = [f'{self.found.all_sqnr:.1f}', format_number(self.lost(self.found.all_metrics), 2)]
        return [*map(self._cells, self.found.layers), ['all layers', *[''] * 7, *every]]

    def stands_out(self, row: list[str]) -> bool:
        return row[0] == 'all layers'

    def _cells(self, layer: Layer) -> list[str]:
        def before_and_after(key: str) -> str:
            value = f'{getattr(layer, key):.1f}'
            return f'{layer.unfolded[key]:.1f} → {value}' if layer.unfolded else value

        return [
            short(layer.name),
            f'{layer.low:.2f} to {layer.high:.2f}',
            '{:.2f} to {:.2f}'.format(*layer.input_range),
            before_and_after('peak'),
            before_and_after('spread'),
            f'{layer.weight_sqnr:.1f} | {layer.tensor_weight_sqnr:.1f}',
            *(f'{v:.1f}' for v in (layer.input_sqnr, layer.output_sqnr, layer.network_sqnr)),
            format_number(self.lost(layer.metrics), 2),
        ]

    def draw(self) -> Figure:
        """Peaks, signal-to-quantization-noise ratios and what is lost, a row a layer."""
        layers = self.found.layers
        rows = range(len(layers))
        figure = new_figure(13, 2.2 + 0.24 * len(layers))
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
            values = [getattr(layer, key) for layer in layers]
            noise.plot(values, rows, marker, color=colour, label=label)
        look = dict(color='black', linestyle='--', label='all layers in int8')
        noise.axvline(self.found.all_sqnr, **look)
        noise.set_xlabel('signal to quantization noise in dB')

        values = [self.lost(layer.metrics) for layer in layers]
        lost.barh(rows, values, color=BLUE, height=0.6)
        lost.axvline(0, color='black', linewidth=0.8)
        lost.set_xlabel(f'{self.metric} lost' if self.metric else 'not evaluated')
        lost.xaxis.set_major_locator(MaxNLocator(4))
        if not any(values) or math.isnan(values[0]):
            lost.set_xlim(-1, 1)
            lost.text(0.05, (len(layers) - 1) / 2, 'nothing' if self.metric else '-')

        rows_down(peaks, [short(layer.name) for layer in layers])
        for axes in (peaks, noise, lost):
            grid(axes)
        figure.suptitle(
            f'each layer alone in int8: {self.config}, {self.checkpoint}, '
            f'{self.calibration} calibration images',
            fontsize=10,
        )
        legend_below(figure, peaks, noise)
        return figure

    def write(self, folder: str | os.PathLike) -> None:
        """Write all numbers and two pictures into a folder, the files of :data:`FILES`."""
        numbers, layers, ranges = (Path(folder, name) for name in FILES)
        self.write_json(numbers)
        self.write_picture(layers)
        write_figure(draw_ranges([self]), ranges)


def check_folder(folder: str | os.PathLike, force: bool = False) -> None:
    """Make sure that :meth:`QuantizationReport.write` may write there.

    Raises:
        UserError: If one of its files exists and ``force`` is False.
    """
    for name in FILES:
        check_out(Path(folder, name), force=force)


def draw_ranges(reports: Sequence[QuantizationReport], titles: Sequence[str] = ()) -> Figure:
    """Each output channel's largest magnitude in standard deviations, networks side by side."""
    names = [short(layer.name) for layer in reports[0].found.layers]
    figure = new_figure(max(8, 2.6 + 3.2 * len(reports)), 1.8 + 0.24 * len(names))
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
        grid(axes)
    rows_down(all_axes[0], names)
    figure.supxlabel(
        'largest magnitude in each output channel of the folded weight, '
        'over its standard deviation; diamond: median channel',
        fontsize=9,
    )
    return figure


def study(
    cfg: Config,
    checkpoint: str | os.PathLike,
    calibration: int = 256,
    per_channel: bool = True,
    evaluate: bool = True,
) -> QuantizationReport:
    """Measure every layer of a checkpoint's deploy form.

    See :func:`mmorepa.deploy.quantization.measure` for what is measured.

    Args:
        cfg (Config): The config that the checkpoint was trained with.
        checkpoint (str | os.PathLike): The checkpoint, in any form. If it is in training or
            plain form, the weights before folding are measured too.
        calibration (int): The number of images of the training set. Defaults to 256.
        per_channel (bool): Whether each output channel of a weight has a scale. Defaults to True.
        evaluate (bool): Whether to evaluate the test set for each layer. Defaults to True.

    Returns:
        QuantizationReport: What was measured, and where.

    Raises:
        UserError: If the checkpoint or the data cannot be used, see
            :func:`mmorepa.deploy.quantization.quantize`.
    """
    tests = TestSet(cfg) if evaluate else None
    model = load_float(cfg, checkpoint)
    batches = calibration_images(cfg, model, calibration)
    return QuantizationReport(
        config=Path(cfg.filename).name,
        checkpoint=Path(checkpoint).name,
        calibration=sum(map(len, batches)),
        seed=seed_of(cfg),
        found=measure(
            model,
            batches,
            per_channel,
            tests and tests.evaluate,
            plain_form(cfg, checkpoint),
            _progress,
        ),
    )


def plain_form(cfg: Config, checkpoint: str | os.PathLike):
    """The plain form of a checkpoint; None if its BatchNorms are folded or being trained in."""
    if is_qat(cfg):
        return None
    loaded = load_model(cfg, checkpoint)
    return None if loaded.form == 'deploy' else squeeze(loaded.model)


def _progress(layers: Sequence) -> Iterator:
    return track(layers, 'layers', console=Console(stderr=True), transient=True)
