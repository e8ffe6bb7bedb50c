"""The report layer by layer: a table, JSON and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...checkpoints import load_model
from ...convs import squeeze
from ...engine.data import seed_of
from ...writing import check_out, write_json
from .calibration import calibration_images
from .evaluation import TestSet, main_metric
from .layer_plots import draw_layers, draw_ranges
from .layers import Layer, Measurement, measure
from .qat import is_qat, load_float

#: What :func:`write` puts into the folder.
FILES = ('layers.json', 'layers.png', 'ranges.png')


@dataclass(frozen=True)
class LayerReport:
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
        """The metric to compare by; None if nothing was evaluated."""
        return main_metric(self.found.float_metrics) if self.found.float_metrics else None

    def lost(self, metrics: dict[str, float]) -> float:
        """How much of the float model's :attr:`metric` is lost; NaN if it was not evaluated."""
        if self.metric is None or not metrics:
            return math.nan
        return self.found.float_metrics[self.metric] - metrics[self.metric]


def study(
    cfg: Config,
    checkpoint: str | os.PathLike,
    calibration: int = 256,
    per_channel: bool = True,
    evaluate: bool = True,
) -> LayerReport:
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
        LayerReport: What was measured, and where.

    Raises:
        UserError: If the checkpoint or the data cannot be used, see
            :func:`mmorepa.deploy.quantization.quantize`.
    """
    tests = TestSet(cfg) if evaluate else None
    model = load_float(cfg, checkpoint)
    batches = calibration_images(cfg, model, calibration)
    return LayerReport(
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


def table(report: LayerReport) -> Table:
    """The report as a table: one row for each layer, and one for all of them."""
    found = report.found
    scales = 'a scale a channel' if found.per_channel else 'one scale a weight'
    shown = Table(
        title=f'{report.config}, {report.checkpoint}: each layer alone in int8, {scales}',
        caption='weights, inputs: the smallest and the largest, inputs on the calibration images; '
        'peak: the largest weight over the standard deviation; spread: the largest channel over '
        'the median one; both before folding → folded;\nweight (a scale a channel | one scale), '
        'input, output, network: SQNR in dB;\n'
        f'lost: {report.metric or "not evaluated"}; '
        f'{report.calibration} calibration images, seed {report.seed}',
    )
    shown.add_column('layer', no_wrap=True)
    ranges = ('weights', 'inputs', 'peak', 'spread')
    for column in (*ranges, 'weight', 'input', 'output', 'network', 'lost'):
        shown.add_column(column, justify='right', no_wrap=True)
    for layer in found.layers:
        shown.add_row(
            layer.name,
            f'{layer.low:.2f} to {layer.high:.2f}',
            '{:.2f} to {:.2f}'.format(*layer.input_range),
            *_before_and_after(layer),
            f'{layer.weight_sqnr:.1f} | {layer.tensor_weight_sqnr:.1f}',
            *(f'{v:.1f}' for v in (layer.input_sqnr, layer.output_sqnr, layer.network_sqnr)),
            format_lost(report.lost(layer.metrics)),
        )
    shown.add_section()
    every = [''] * 7 + [f'{found.all_sqnr:.1f}', format_lost(report.lost(found.all_metrics))]
    shown.add_row('all layers', *every, style='bold')
    return shown


def _before_and_after(layer: Layer) -> tuple[str, str]:
    def text(key):
        value = f'{getattr(layer, key):.1f}'
        return f'{layer.unfolded[key]:.1f} → {value}' if layer.unfolded else value

    return text('peak'), text('spread')


def format_lost(lost: float) -> str:
    """A loss with two digits behind the point; ``-`` if it was not evaluated."""
    return '-' if math.isnan(lost) else f'{lost + 0.0:.2f}'


def check_folder(folder: str | os.PathLike, force: bool = False) -> None:
    """Make sure that :func:`write` may write there.

    Raises:
        UserError: If one of its files exists and ``force`` is False.
    """
    for name in FILES:
        check_out(Path(folder, name), force=force)


def write(report: LayerReport, folder: str | os.PathLike) -> None:
    """Write the report into a folder: ``layers.json``, ``layers.png`` and ``ranges.png``."""
    folder = Path(folder)
    write_json(asdict(report), folder / 'layers.json')
    draw_layers(report, folder / 'layers.png')
    draw_ranges([report], folder / 'ranges.png')


def read(folder: str | os.PathLike) -> LayerReport:
    """Read a report that :func:`write` wrote; infinite ratios come back as NaN."""
    content = json.loads(Path(folder, 'layers.json').read_text(), parse_constant=str)
    found = content.pop('found')
    layers = [
        Layer(**{k: math.nan if v is None and k != 'unfolded' else v for k, v in layer.items()})
        for layer in found.pop('layers')
    ]
    return LayerReport(**content, found=Measurement(layers=layers, **found))
