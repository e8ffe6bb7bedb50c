"""The effective learning rates of a config's network, as a report and as a config."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from ...engine.data import build_loader
from ...errors import UserError
from ...writing import write_text
from ..drawing import COLOURS, GREY, grid, legend_below, logarithmic, new_figure, rows_down
from ..network import load_network
from ..scaffold import Column, Report
from .effective_lr import NUMBERS, Layer, blocks_of, measure

CONSTRUCTOR = 'OREPAOptimWrapperConstructor'

#: What the stem can be made to step like, by the name on the command line.
LIKE = dict(
    plain='a plain convolution with the same kernel (gain 1)',
    block='the other blocks (their median gain)',
    relative='the other blocks, sizes of kernels aside (their median relative step)',
)

#: Colours of the kinds of kernels that are met often.
COLOUR_OF = {'stem': COLOURS[1], '3x3': COLOURS[0], '1x1': COLOURS[2]}


@dataclass(frozen=True)
class StepReport(Report):
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

    caption = (
        'median over the batches, ± half the range; a plain convolution has gain, along and '
        'cosine 1;\nrelative is the step over the length of the kernel'
    )

    @property
    def what(self) -> str:
        """What was measured: config, checkpoint and batches."""
        return f'{self.config}, {self.checkpoint}, {self.batches} batches'

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

    def heading(self) -> str:
        return f'one SGD step of {self.what}'

    def columns(self) -> list[Column]:
        def cell(layer: Layer, number: str) -> str:
            if layer.frozen:
                return 'frozen' if number == NUMBERS[0] else ''
            return format_spread(layer.spread(number))

        return [
            Column('layer', lambda layer: layer.name, left=True),
            Column('kernel', lambda layer: layer.kind, left=True),
            Column('shape', lambda layer: 'x'.join(map(str, layer.shape)), left=True),
            *[Column(number, partial(cell, number=number)) for number in NUMBERS],
        ]

    def stands_out(self, row: Layer) -> bool:
        return row.kind == 'stem'

    def summary(self) -> list[str]:
        lines = self.findings()
        for like, meaning in LIKE.items():
            try:
                lines.append(f'to step like {meaning}: {format_mults(self.suggest(like))}')
            except UserError as error:
                if like == 'plain':
                    return [*lines, str(error)]
        return lines

    def findings(self) -> list[str]:
        """The stem's numbers and the other blocks', a line each, as far as there are any."""
        lines = []
        if not math.isnan(self.stem()):
            lines.append(
                f'stem: gain {self.stem():.3g}, relative {self.stem("relative"):.3g}, '
                f'under {format_mults(self.lr_mults)}'
            )
        if not math.isnan(self.others()):
            lines.append(
                f'other blocks, median: gain {self.others():.3g}, '
                f'relative {self.others("relative"):.3g}'
            )
        return lines

    def content(self) -> dict:
        suggested = {}
        for like in LIKE:
            with contextlib.suppress(UserError):
                suggested[like] = self.suggest(like)
        return dict(
            config=self.config,
            checkpoint=self.checkpoint,
            batches=self.batches,
            lr_mults=self.lr_mults,
            suggested=suggested,
            layers=[asdict(layer) for layer in self.layers],
        )

    def draw(self) -> Figure:
        figure = new_figure(12, 2.4 + 0.2 * len(self.layers))
        left, right = figure.subplots(1, 2, sharey=True)
        self.draw_number(left, 'gain')
        self.draw_number(right, 'relative')
        look = dict(color='black', linewidth=1)
        left.axvline(1, label='a plain convolution with that kernel', **look)
        left.set_xlabel('gain: length of the step, over that of a plain convolution')
        right.set_xlabel('relative step: length of the step, over that of the kernel')
        rows_down(left, [layer.name + ' (frozen)' * layer.frozen for layer in self.layers])
        figure.suptitle(
            f'How far one SGD step moves each generated kernel\n{self.what}', fontsize=10
        )
        legend_below(figure, left, right)
        return figure

    def draw_number(self, axes: Axes, number: str) -> None:
        """Draw one number of each layer: a point for the median, a line from lowest to highest."""
        for row, layer in enumerate(self.layers):
            low, mid, high = layer.spread(number)
            if math.isnan(mid) or mid == 0:
                continue
            colour = COLOUR_OF.get(layer.kind, GREY)
            axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle='butt')
            label = 'deep linear stem' if layer.kind == 'stem' else f'{layer.kind} block'
            axes.plot([mid], [row], 'o', color=colour, markersize=5, label=label + ', median')
            if number == 'gain':
                look = dict(color=colour, markerfacecolor='white', markersize=4)
                axes.plot([layer.spread('along')[1]], [row], 'D', **look)
        axes.plot([], [], color=GREY, linewidth=2, label='lowest to highest of the batches')
        if number == 'gain':
            look = dict(color=GREY, markerfacecolor='white')
            axes.plot([], [], 'D', label='part of the gain along the gradient', **look)
        if self.others(number) > 0:
            look = dict(color='black', linewidth=1, linestyle='--')
            axes.axvline(
                self.others(number), label='median of the blocks other than the stem', **look
            )
        axes.set_xscale('log')
        drawn = [mid for _, mid, _ in (layer.spread(number) for layer in self.layers) if mid > 0]
        if drawn:
            logarithmic(axes.xaxis, min(drawn), max(drawn))
        grid(axes)


def study(cfg: Config, checkpoint: str | os.PathLike | None = None, batches: int = 4) -> StepReport:
    """Measure the network of a config on batches of its training data.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form. By default the network is
            as training starts: freshly initialised, or from the config's ``load_from`` and
            ``init_cfg``.
        batches (int): How many to run. Defaults to 4.

    Returns:
        StepReport: See there.

    Raises:
        UserError: If the checkpoint does not fit or is in another form, the data is not there, or
            for the reasons of :func:`mmorepa.lab.analysis.effective_lr.measure`.
    """
    if cfg.get('train_dataloader') is None or cfg.get('optim_wrapper') is None:
        raise UserError('the config has no train_dataloader or no optim_wrapper: wanted both')
    network = load_network(cfg, checkpoint)
    blocks_of(network.model)
    loader = build_loader(cfg, 'train_dataloader')
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
    return StepReport(
        config=network.config,
        checkpoint=network.checkpoint,
        batches=count,
        layers=layers,
        lr_mults=lr_mults,
    )


def format_spread(spread: Sequence[float]) -> str:
    """The median to three digits and half the range in per cent of it; ``-`` where there is none.

    Args:
        spread (Sequence[float]): Lowest, median and highest.
    """
    low, middle, high = spread
    if math.isnan(middle):
        return '-'
    return f'{middle:.3g} ±{(high - low) / middle / 2:.0%}' if middle else '0'


def format_mults(lr_mults: Mapping[str, float]) -> str:
    """Multipliers as text: ``stem lr_mult=0.1``."""
    return ', '.join(f'{kind} lr_mult={mult:g}' for kind, mult in lr_mults.items())


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
    report: StepReport, cfg: Config, path: str | os.PathLike, like: str = 'plain'
) -> dict[str, float]:
    """Write a config that inherits the measured one and has the suggested multipliers.

    It can be trained as it is, and be a ``_base_`` of others. Written whole or not at all.

    Args:
        report (StepReport): Of ``cfg``.
        cfg (Config): The config to inherit.
        path (str | os.PathLike): The file to write; see :func:`check_target`.
        like (str): See :meth:`StepReport.suggest`.

    Returns:
        dict[str, float]: The multipliers in it.

    Raises:
        UserError: If there is nothing to suggest.
    """
    mults = report.suggest(like)
    path = Path(path)
    base = Path(os.path.relpath(Path(cfg.filename).resolve(), path.parent.resolve())).as_posix()
    rules = ', '.join(f'{kind}=dict(lr_mult={mult:g})' for kind, mult in mults.items())
    measured = '\n# '.join(report.findings())
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
    write_text(text, path)
    return mults


def middle(layers: Iterable[Layer], number: str) -> float:
    """The median over layers of their median over batches, NaN left out; NaN if none is left."""
    values = [layer.spread(number)[1] for layer in layers]
    values = [value for value in values if not math.isnan(value)]
    return median(values) if values else math.nan
