"""Where the training form and the deploy form of a config's network part, as a report."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure
from mmengine.config import Config

from ...checkpoints.comparing import input_channels, probe_image
from ...checkpoints.forms import form_of
from ...convs import Agreement
from ...convs.convert.squeezing import TOLERANCE
from ...engine.data import build_loader, image_batches
from ...errors import UserError
from ..drawing import COLOURS, grid, legend_above, new_figure, rows_down
from ..network import load_network
from ..scaffold import Column, Report, short
from .form_differences import Difference, Layer, compare_layers

#: How many layers a sentence names.
WORST = 3
#: What a picture shows of smaller differences, zero among them.
LEAST = 1e-9


@dataclass(frozen=True)
class FormsReport(Report):
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

    caption = (
        'alone: the folded convolution on the input that the training form has there; so far: all '
        'layers up to here;\nrelative to the largest output; gain: the largest factor by which '
        'the BatchNorm scales a channel'
    )

    def worst(self, what: str) -> list[Layer]:
        """The layers that ran, those that differ most in front.

        Args:
            what (str): ``'alone'`` or ``'so_far'``.
        """
        return sorted(self.rows(), key=lambda layer: badness(layer, what), reverse=True)

    def at_fault(self) -> list[Layer]:
        """The layers that differ alone by more than ``convert.py`` lets pass, the worst first."""
        return [layer for layer in self.worst('alone') if self.stands_out(layer)]

    def heading(self) -> str:
        return f'training and deploy form of {self.title}, on {self.images}'

    def columns(self) -> list[Column]:
        return [
            Column('layer', lambda layer: short(layer.name), left=True),
            Column('block', lambda layer: layer.kind, left=True),
            Column('alone', lambda layer: format_difference(layer.alone)[0]),
            Column('relative', lambda layer: format_difference(layer.alone)[1]),
            Column('so far', lambda layer: format_difference(layer.so_far)[0]),
            Column('relative', lambda layer: format_difference(layer.so_far)[1]),
            Column('gain', lambda layer: '-' if math.isnan(layer.gain) else f'{layer.gain:.3g}'),
            Column('', lambda layer: 'DIFFERS' if self.stands_out(layer) else ''),
        ]

    def rows(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.calls]

    def stands_out(self, row: Layer) -> bool:
        return not badness(row, 'alone') <= TOLERANCE

    def summary(self) -> list[str]:
        lines = []
        for what, text in (('alone', 'by themselves'), ('so_far', 'with all before them')):
            worst = ', '.join(
                f'{layer.name} {format_difference(getattr(layer, what))[1]}'
                for layer in self.worst(what)[:WORST]
            )
            lines.append(f'differ most {text} (relative): {worst or "no layer ran"}')
        for layer in self.at_fault():
            if not layer.follows:
                lines.append(
                    f'{layer.name}: the BatchNorm held behind it does not run on its output, and '
                    'was folded into it all the same; let the module hold both in the order in '
                    'which they run'
                )
        skipped = [layer.name for layer in self.layers if not layer.calls]
        if skipped:
            lines.append(f'did not run: {", ".join(skipped)}')
        within = self.agreement.within(TOLERANCE)
        verdict = 'within' if within else 'beyond'
        lines.append(f'raw outputs: {self.agreement}; {verdict} the {TOLERANCE:.0e} of convert.py')
        if not within and not self.at_fault():
            lines.append(
                'no layer differs by itself by more than that: small differences grow on their '
                'way, or something outside of these layers differs'
            )
        return lines

    def content(self) -> dict:
        return dict(
            network=self.title,
            images=self.images,
            agreement=dict(
                asdict(self.agreement), within_tolerance=self.agreement.within(TOLERANCE)
            ),
            tolerance=TOLERANCE,
            differs=[layer.name for layer in self.at_fault()],
            layers=list(map(asdict, self.layers)),
        )

    def draw(self) -> Figure:
        layers = self.rows()
        figure = new_figure(10, 2.4 + 0.2 * len(layers))
        axes = figure.subplots()
        for what, text, mark, colour in (
            ('alone', 'the layer alone, on the same input', 'o', COLOURS[0]),
            ('so_far', 'all layers up to here', 's', COLOURS[5]),
        ):
            found = [(getattr(layer, what).relative, row) for row, layer in enumerate(layers)]
            found = [(max(value, LEAST), row) for value, row in found if math.isfinite(value)]
            if found:
                axes.plot(*zip(*found), mark, color=colour, markersize=5, label=text)
        lost = [row for row, layer in enumerate(layers) if math.isinf(badness(layer, 'alone'))]
        if lost:
            look = dict(color=COLOURS[1], markersize=8, label='NaN, or not its BatchNorm')
            axes.plot([1] * len(lost), lost, 'X', **look)
        look = dict(color='black', linestyle='--', linewidth=1)
        axes.axvline(TOLERANCE, label='convert.py refuses a network beyond this', **look)
        axes.set_xscale('log')
        axes.set_xlabel(
            'largest difference between the outputs of both forms, over the largest output\n'
            f'({LEAST:.0e} stands for whatever is smaller)'
        )
        rows_down(axes, [short(layer.name) for layer in layers])
        grid(axes)
        legend_above(axes)
        figure.suptitle(
            f'How far training form and deploy form differ, layer by layer\n{self.title}, on '
            f'{self.images}\nfinal outputs: {self.agreement}',
            fontsize=9,
        )
        return figure


def badness(layer: Layer, what: str) -> float:
    """The relative difference; infinite where it is NaN, or the BatchNorm is another one's."""
    relative = getattr(layer, what).relative
    return math.inf if math.isnan(relative) or not layer.follows else relative


def format_difference(found: Difference) -> tuple[str, str]:
    """The absolute and the relative difference as text."""
    return tuple('-' if math.isnan(n) else f'{n:.1e}' for n in (found.max_abs, found.relative))


def study(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    from_data: bool = False,
    probe_size: int = 224,
) -> FormsReport:
    """Compare both forms of a config's network.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training or plain form; by default as
            training starts.
        from_data (bool): True runs the first batch of the config's test data, False the random
            image of ``convert.py``. Defaults to False.
        probe_size (int): Height and width of that in pixels. Defaults to 224.

    Returns:
        FormsReport: See there.

    Raises:
        UserError: If the network is in deploy form, the data is not there, or see
            :func:`mmorepa.lab.network.load_network`.
    """
    network = load_network(cfg, checkpoint, training_form=False)
    model = network.model
    if form_of(model) == 'deploy':
        raise UserError(
            f'{network} is in deploy form already, there is nothing to compare: '
            'give the checkpoint that it was converted from'
        )
    if from_data:
        images = next(image_batches(build_loader(cfg, 'test_dataloader'), model))
        text = f'{len(images)} images of the test data'
    else:
        images = probe_image(probe_size, input_channels(model))
        images = images.to(next(model.parameters()).device)
        text = f'a random image of {probe_size} x {probe_size}'
    return FormsReport(str(network), text, *compare_layers(model, images))
