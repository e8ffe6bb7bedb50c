"""The effective learning rates of a config's network: measured, shown, and put into a config."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...checkpoints.files import written_whole
from ...engine.networks import load_data, load_network
from ...errors import UserError
from .. import report as output
from .effective_lr import NUMBERS, Layer, blocks_of, measure

CONSTRUCTOR = 'OREPAOptimWrapperConstructor'

#: What the stem can be made to step like, by the name on the command line.
LIKE = dict(
    plain='a plain convolution with the same kernel (gain 1)',
    block='the other blocks (their median gain)',
    relative='the other blocks, sizes of kernels aside (their median relative step)',
)

#: Colours that colour-blind readers can tell apart, by the kind of kernel.
COLOURS = {'stem': '#d55e00', '3x3': '#0072b2', '1x1': '#009e73'}
OTHER_COLOUR = '#555555'


@dataclass(frozen=True)
class Report:
    """What was measured on a config's network.

    Attributes:
        config (str): The config's file name.
        checkpoint (str): The checkpoint's file name, or ``'the start of training'``.
        batches (int): How many were run.
        layers (list[Layer]): In the network's order.
        lr_mults (dict[str, float]): The multipliers in the config under which it was measured,
            of ``stem`` and, if the config has one, of ``stem_scale``.
    """

    config: str
    checkpoint: str
    batches: int
    layers: list[Layer]
    lr_mults: dict[str, float]

    def stem(self, number: str = 'gain') -> float:
        """One of :data:`NUMBERS` for the stem, the median over the batches; NaN where none is."""
        return middle((layer for layer in self.layers if layer.kind == 'stem'), number)

    def others(self, number: str = 'gain') -> float:
        """That of the other blocks, the median over them."""
        return middle((layer for layer in self.layers if layer.kind != 'stem'), number)

    def suggest(self, like: str = 'plain') -> dict[str, float]:
        """The multipliers under which the stem steps like something else.

        Args:
            like (str): A key of :data:`LIKE`.

        Returns:
            dict[str, float]: As ``lr_mults``, to two digits.

        Raises:
            UserError: If there is no stem, nothing moves it, or there is nothing to compare with.
        """
        stems = [layer for layer in self.layers if layer.kind == 'stem']
        if not stems:
            raise UserError('the model has no deep linear stem: there is no lr_mult to suggest')
        if not self.stem() > 0:
            raise UserError(
                f'the stem {stems[0].name} is frozen or gets no gradient, there is no lr_mult to '
                'suggest: unfreeze it, in a backbone with frozen_stages=-1'
            )
        factor = dict(
            plain=1 / self.stem('gain'),
            block=self.others('gain') / self.stem('gain'),
            relative=self.others('relative') / self.stem('relative'),
        )[like]
        if math.isnan(factor):
            raise UserError(
                f'no other block is trained, to whose {like} the stem could be compared: '
                'choose --like plain'
            )
        return {kind: float(f'{mult * factor:.2g}') for kind, mult in self.lr_mults.items()}


def study(cfg: Config, checkpoint: str | os.PathLike | None = None, batches: int = 4) -> Report:
    """Measure the network of a config on batches of its training data.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form. By default the network is
            as training starts: freshly initialised, or from the config's ``load_from`` and
            ``init_cfg``.
        batches (int): How many to run. Defaults to 4.

    Returns:
        Report: See there.

    Raises:
        UserError: If the checkpoint does not fit or is in another form, the data is not there, or
            for the reasons of :func:`mmorepa.lab.analysis.effective_lr.measure`.
    """
    if cfg.get('train_dataloader') is None or cfg.get('optim_wrapper') is None:
        raise UserError('the config has no train_dataloader or no optim_wrapper: wanted both')
    network = load_network(cfg, checkpoint)
    blocks_of(network.model)
    loader = load_data(cfg, 'train_dataloader')
    count = min(batches, len(loader))
    progress = track(
        islice(loader, count),
        'batches',
        total=count,
        console=Console(stderr=True),
        transient=True,
    )
    layers = measure(network.model, progress, cfg.optim_wrapper)
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    lr_mults = dict(stem=paramwise.get('stem', {}).get('lr_mult', 1))
    if 'lr_mult' in paramwise.get('stem_scale', {}):
        lr_mults['stem_scale'] = paramwise['stem_scale']['lr_mult']
    return Report(
        config=network.config,
        checkpoint=network.checkpoint,
        batches=count,
        layers=layers,
        lr_mults=lr_mults,
    )


def table(report: Report) -> Table:
    """The measurements as a table, a row a layer."""
    shown = Table(
        title=f'one SGD step of {report.config}, {report.checkpoint}, {report.batches} batches',
        caption='median over the batches, ± half the range; a plain convolution has gain, along '
        'and cosine 1;\nrelative is the step over the length of the kernel',
    )
    for column in ('layer', 'kernel', 'shape'):
        shown.add_column(column, no_wrap=True)
    for column in NUMBERS:
        shown.add_column(column, justify='right', no_wrap=True)
    for layer in report.layers:
        numbers = [format_spread(layer.spread(number)) for number in NUMBERS]
        if layer.frozen:
            numbers = ['frozen', '', '', '']
        style = 'bold' if layer.kind == 'stem' else None
        shape = 'x'.join(map(str, layer.shape))
        shown.add_row(layer.name, layer.kind, shape, *numbers, style=style)
    return shown


def format_spread(spread: Sequence[float]) -> str:
    """The median to three digits and half the range in per cent of it; ``-`` where there is none.

    Args:
        spread (Sequence[float]): Lowest, median and highest.
    """
    low, middle, high = spread
    if math.isnan(middle):
        return '-'
    return f'{middle:.3g} ±{(high - low) / middle / 2:.0%}' if middle else '0'


def summary(report: Report) -> list[str]:
    """What the measurements say about the stem's learning rate, a sentence a line."""
    lines = findings(report)
    for like, meaning in LIKE.items():
        try:
            lines.append(f'to step like {meaning}: {format_mults(report.suggest(like))}')
        except UserError as error:
            if like == 'plain':
                return [*lines, str(error)]
    return lines


def findings(report: Report) -> list[str]:
    """The stem's numbers and the other blocks', a line each, as far as there are any."""
    lines = []
    if not math.isnan(report.stem()):
        lines.append(
            f'stem: gain {report.stem():.3g}, relative {report.stem("relative"):.3g}, '
            f'under {format_mults(report.lr_mults)}'
        )
    if not math.isnan(report.others()):
        lines.append(
            f'other blocks, median: gain {report.others():.3g}, '
            f'relative {report.others("relative"):.3g}'
        )
    return lines


def format_mults(lr_mults: Mapping[str, float]) -> str:
    """Multipliers as text: ``stem lr_mult=0.1``."""
    return ', '.join(f'{kind} lr_mult={mult:g}' for kind, mult in lr_mults.items())


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write all numbers; those that do not exist are null. The file is written whole or not."""
    suggested = {}
    for like in LIKE:
        with contextlib.suppress(UserError):
            suggested[like] = report.suggest(like)
    content = dict(
        config=report.config,
        checkpoint=report.checkpoint,
        batches=report.batches,
        lr_mults=report.lr_mults,
        suggested=suggested,
        layers=[asdict(layer) for layer in report.layers],
    )
    output.write_json(content, path)


def write_plot(report: Report, path: str | os.PathLike) -> None:
    """Draw gain, along and relative step of each layer, as a PNG; written whole or not at all."""
    figure = Figure(figsize=(11, 2 + 0.2 * len(report.layers)), layout='constrained', dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    draw(left, report, 'gain')
    draw(right, report, 'relative')
    left.axvline(1, color='black', linewidth=1, label='plain convolution')
    left.set_xlabel('gain: the step over that of a plain convolution')
    right.set_xlabel('relative: the step over the length of the kernel')
    names = [layer.name + ' (frozen)' * layer.frozen for layer in report.layers]
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(
        f'one SGD step: {report.config}, {report.checkpoint}, {report.batches} batches', fontsize=10
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), fontsize=8)
    output.write_figure(figure, path)


def draw(axes: Axes, report: Report, number: str) -> None:
    """Draw one number of each layer: a point for the median, a line from lowest to highest."""
    for row, layer in enumerate(report.layers):
        low, mid, high = layer.spread(number)
        if math.isnan(mid) or mid == 0:
            continue
        colour = COLOURS.get(layer.kind, OTHER_COLOUR)
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle='butt')
        label = layer.kind if layer.kind not in axes.get_legend_handles_labels()[1] else None
        axes.plot([mid], [row], 'o', color=colour, markersize=5, label=label)
        if number == 'gain':
            along = layer.spread('along')[1]
            axes.plot([along], [row], 'D', color=colour, markerfacecolor='white', markersize=4)
    if number == 'gain':
        axes.plot(
            [], [], 'D', color=OTHER_COLOUR, markerfacecolor='white', label='along the gradient'
        )
    if report.others(number) > 0:
        axes.axvline(
            report.others(number),
            color='black',
            linewidth=1,
            linestyle='--',
            label='median of the blocks other than the stem',
        )
    axes.set_xscale('log')
    axes.grid(color='#dddddd', linewidth=0.5)
    axes.set_axisbelow(True)


def check_target(cfg: Config, path: str | os.PathLike, force: bool = False) -> None:
    """Make sure that :func:`write_config` may write there.

    Args:
        cfg (Config): The config to be inherited.
        path (str | os.PathLike): The file to write.
        force (bool): Whether it may be there already. Defaults to False.

    Raises:
        UserError: If not, or the config's rules for the optimizer come from elsewhere.
    """
    path = Path(path)
    if path.suffix != '.py':
        raise UserError(f'{path} is no name for a config: wanted an ending of .py')
    if path.resolve() == Path(cfg.filename).resolve():
        raise UserError(f'{path} is the config itself: choose another name, the file inherits it')
    if path.exists() and not force:
        raise UserError(f'{path} exists already: choose another name or pass --force')
    constructor = (cfg.get('optim_wrapper') or {}).get('constructor') or CONSTRUCTOR
    if constructor not in (CONSTRUCTOR, 'DefaultOptimWrapperConstructor'):
        raise UserError(
            f'the config has optim_wrapper.constructor={constructor}, which knows no stem: '
            f"wanted {CONSTRUCTOR}, which knows what MMEngine's default one knows"
        )


def write_config(
    report: Report, cfg: Config, path: str | os.PathLike, like: str = 'plain'
) -> dict[str, float]:
    """Write a config that inherits the measured one and has the suggested multipliers.

    It can be trained as it is, and be a ``_base_`` of others. Written whole or not at all.

    Args:
        report (Report): Of ``cfg``.
        cfg (Config): The config to inherit.
        path (str | os.PathLike): The file to write; see :func:`check_target`.
        like (str): See :meth:`Report.suggest`.

    Returns:
        dict[str, float]: The multipliers in it.

    Raises:
        UserError: If there is nothing to suggest.
    """
    mults = report.suggest(like)
    path = Path(path)
    base = Path(os.path.relpath(Path(cfg.filename).resolve(), path.parent.resolve())).as_posix()
    rules = ', '.join(f'{kind}=dict(lr_mult={mult:g})' for kind, mult in mults.items())
    measured = '\n# '.join(findings(report))
    text = f"""\
# Written by tools/analyze.py effective-lr, which found on {report.batches} batches of
# {report.config}, {report.checkpoint}:
# {measured}
# The stem now steps like {LIKE[like]}.
# A measurement of this network; the paper's value was never published.
_base_ = [{base!r}]

optim_wrapper = dict(
    constructor={CONSTRUCTOR!r},
    paramwise_cfg=dict({rules}),
)
"""
    with written_whole(path) as temporary:
        temporary.write_text(text)
    return mults


def middle(layers: Iterable[Layer], number: str) -> float:
    """The median over layers of their median over batches, NaN left out; NaN if none is left."""
    values = [layer.spread(number)[1] for layer in layers]
    values = [value for value in values if not math.isnan(value)]
    return median(values) if values else math.nan
