"""Where the forms of a config's network part: measured, shown, written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure
from mmengine.config import Config
from rich.table import Table
from torch import Tensor, nn

from ...checkpoints.forms import form_of
from ...checkpoints.probing import probe_image
from ...convs import Agreement
from ...convs.convert.squeezing import TOLERANCE
from ...engine.networks import load_data, load_network
from ...errors import UserError
from .. import report as output
from .form_differences import Difference, Layer, compare_layers

#: How many layers a sentence names.
WORST = 3
#: What a picture shows of smaller differences, zero among them.
LEAST = 1e-9


@dataclass(frozen=True)
class Report:
    """Both forms, layer by layer.

    Attributes:
        title (str): Config and checkpoint.
        images (str): What both ran on.
        layers (list[Layer]): In the order in which they ran.
        agreement (Agreement): Of the raw outputs, as ``convert.py`` compares them.
    """

    title: str
    images: str
    layers: list[Layer]
    agreement: Agreement

    def worst(self, what: str) -> list[Layer]:
        """The layers that ran, those that differ most in front.

        Args:
            what (str): ``'alone'`` or ``'so_far'``.
        """
        found = [layer for layer in self.layers if layer.calls]
        return sorted(found, key=lambda layer: badness(layer, what), reverse=True)


def badness(layer: Layer, what: str) -> float:
    """The relative difference; infinite where it is NaN, or the BatchNorm is another one's."""
    relative = getattr(layer, what).relative
    return math.inf if math.isnan(relative) or not layer.follows else relative


def study(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    from_data: bool = False,
    probe_size: int = 224,
) -> Report:
    """Compare both forms of a config's network.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training or squeezed form; by default as
            training starts.
        from_data (bool): True runs the first batch of the config's test data, False the random
            image of ``convert.py``. Defaults to False.
        probe_size (int): Height and width of that in pixels. Defaults to 224.

    Returns:
        Report: See there.

    Raises:
        UserError: If the network is in deploy form, the data is not there, or see
            :func:`mmorepa.engine.networks.load_network`.
    """
    network = load_network(cfg, checkpoint, training_form=False)
    model = network.model
    if form_of(model) == 'deploy':
        raise UserError(
            f'{network} is in deploy form already, there is nothing to compare: '
            'give the checkpoint that it was converted from'
        )
    if from_data:
        images = first_batch(cfg, model)
        text = f'{len(images)} images of the test data'
    else:
        images = probe_image(probe_size).to(next(model.parameters()).device)
        text = f'a random image of {probe_size} x {probe_size}'
    return Report(str(network), text, *compare_layers(model, images))


def first_batch(cfg: Config, model: nn.Module) -> Tensor:
    """The first batch of the test data as the network gets it, (N, 3, H, W)."""
    batch = next(iter(load_data(cfg, 'test_dataloader')))
    data = model.data_preprocessor(batch, False)
    images = data['inputs'] if isinstance(data, Mapping) else data[0]
    return images.to(next(model.parameters()).device)


def table(report: Report) -> Table:
    """A row a layer that ran."""
    shown = Table(
        title=f'training and deploy form of {report.title}, on {report.images}',
        caption='alone: the folded convolution on the input that the training form has there; so '
        'far: all layers up to here;\nrelative to the largest output; gain: the largest factor by '
        'which the BatchNorm scales a channel',
    )
    for column in ('layer', 'block'):
        shown.add_column(column, no_wrap=True)
    for column in ('alone', 'relative', 'so far', 'relative', 'gain', ''):
        shown.add_column(column, justify='right', no_wrap=True)
    marked = {layer.name for layer in at_fault(report)}
    for layer in report.layers:
        if not layer.calls:
            continue
        shown.add_row(
            output.short(layer.name),
            layer.kind,
            *format_difference(layer.alone),
            *format_difference(layer.so_far),
            '-' if math.isnan(layer.gain) else f'{layer.gain:.3g}',
            'DIFFERS' if layer.name in marked else '',
            style='bold' if layer.name in marked else None,
        )
    return shown


def format_difference(found: Difference) -> tuple[str, str]:
    """Absolute and relative."""
    return tuple('-' if math.isnan(n) else f'{n:.1e}' for n in (found.max_abs, found.relative))


def at_fault(report: Report) -> list[Layer]:
    """The layers that differ by themselves by more than ``convert.py`` lets pass, worst first."""
    return [layer for layer in report.worst('alone') if not badness(layer, 'alone') <= TOLERANCE]


def summary(report: Report) -> list[str]:
    """Which layers are worst, and what comes of it in the end, a sentence a line."""
    lines = []
    for what, text in (('alone', 'by themselves'), ('so_far', 'with all before them')):
        worst = ', '.join(
            f'{layer.name} {format_difference(getattr(layer, what))[1]}'
            for layer in report.worst(what)[:WORST]
        )
        lines.append(f'differ most {text} (relative): {worst or "no layer ran"}')
    for layer in at_fault(report):
        if not layer.follows:
            lines.append(
                f'{layer.name}: the BatchNorm held behind it does not run on its output, and was '
                'folded into it all the same; let the module hold both in the order in which '
                'they run'
            )
    skipped = [layer.name for layer in report.layers if not layer.calls]
    if skipped:
        lines.append(f'did not run: {", ".join(skipped)}')
    within = report.agreement.within(TOLERANCE)
    verdict = 'within' if within else 'beyond'
    lines.append(f'raw outputs: {report.agreement}; {verdict} the {TOLERANCE:.0e} of convert.py')
    if not within and not at_fault(report):
        lines.append(
            'no layer differs by itself by more than that: small differences grow on their way, '
            'or something outside of these layers differs'
        )
    return lines


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write all numbers; whole or not at all."""
    output.write_json(
        dict(
            network=report.title,
            images=report.images,
            agreement=dict(
                asdict(report.agreement), within_tolerance=report.agreement.within(TOLERANCE)
            ),
            tolerance=TOLERANCE,
            differs=[layer.name for layer in at_fault(report)],
            layers=list(map(asdict, report.layers)),
        ),
        path,
    )


def write_plot(report: Report, path: str | os.PathLike) -> None:
    """Draw both relative differences of each layer, as a PNG; written whole or not at all."""
    layers = [layer for layer in report.layers if layer.calls]
    figure = Figure(figsize=(10, 2.2 + 0.2 * len(layers)), layout='constrained', dpi=110)
    axes = figure.subplots()
    for what, text, mark, colour in (
        ('alone', 'the layer alone', 'o', output.COLOURS[0]),
        ('so_far', 'all layers up to here', 's', output.COLOURS[5]),
    ):
        found = [(getattr(layer, what).relative, row) for row, layer in enumerate(layers)]
        found = [(max(value, LEAST), row) for value, row in found if math.isfinite(value)]
        if found:
            axes.plot(*zip(*found), mark, color=colour, markersize=5, label=text)
    for row, layer in enumerate(layers):
        if math.isinf(badness(layer, 'alone')):
            axes.plot([1], [row], 'X', color=output.COLOURS[1], markersize=8)
    axes.axvline(TOLERANCE, color='black', linestyle='--', linewidth=1, label='convert.py refuses')
    axes.set_xscale('log')
    axes.set_xlabel(f'largest difference over the largest output ({LEAST:.0e} stands for less)')
    axes.set_yticks(range(len(layers)), [output.short(layer.name) for layer in layers], fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.grid(color='#dddddd', linewidth=0.5)
    axes.set_axisbelow(True)
    output.legend_above(axes)
    figure.suptitle(
        f'training and deploy form: {report.title}\non {report.images}; {report.agreement}',
        fontsize=9,
    )
    output.write_figure(figure, path)
