"""The effective learning rates of a config's network, as a report and as a config."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from ...engine.optim_wrapper_constructor import FAMILY
from ...errors import UserError
from ...writing import write_text
from ..drawing import COLOURS, GREY, grid, legend_below, logarithmic, new_figure, rows_down
from ..network import load_network
from ..scaffold import Column, Report, mean_of
from .effective_lr import NUMBERS, Layer, blocks_of, measure, measure_plain

CONSTRUCTOR = 'OREPAOptimWrapperConstructor'

#: What the stem can be made to step like, by the name on the command line; with ``network`` all
#: blocks are.
LIKE = dict(
    plain='a plain convolution with the same kernel (gain 1)',
    block='the other blocks (their median gain)',
    relative='the other blocks, sizes of kernels aside (their median relative step)',
    network='the plain network, sizes of kernels aside (the median ratio of relative steps)',
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
            of ``stem`` and ``block`` and, if the config has them, of ``stem_scale`` and ``scale``.
        plain (str): What the plain network is called; empty without one.
        plain_steps (dict[str, float]): The relative steps of its convolutions by name.
    """

    config: str
    checkpoint: str
    batches: int
    layers: list[Layer]
    lr_mults: dict[str, float]
    plain: str = ''
    plain_steps: dict[str, float] = field(default_factory=dict)

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

    def lag(self, is_stem: bool) -> float:
        """How many times as far the plain network's step turns a kernel as the blocks' does.

        Args:
            is_stem (bool): Whether to compare the stem, or the other blocks.

        Returns:
            float: The median over the layers that both have; NaN if there is none.
        """
        ratios = [
            self.plain_steps[layer.name] / step
            for layer in self.layers
            if (layer.kind == 'stem') == is_stem and layer.name in self.plain_steps
            if (step := layer.spread('relative')[1]) > 0
        ]
        return median(ratios) if ratios else math.nan

    def suggest(self, like: str = 'plain') -> dict[str, float]:
        """The multipliers under which the stem, or all blocks, step like something else.

        Args:
            like (str): A key of :data:`LIKE`.

        Returns:
            dict[str, float]: As ``lr_mults``, to two digits, of what the rule is for.

        Raises:
            UserError: If there is no stem, nothing moves it, or there is nothing to compare with.
        """
        if like == 'network':
            return self._like_the_plain_network()
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
        return self._multiplied(stem=factor)

    def _like_the_plain_network(self) -> dict[str, float]:
        if not self.plain:
            raise UserError('there is no plain network to compare with: give one with --plain')
        factors = dict(stem=self.lag(True), block=self.lag(False))
        factors = {kind: factor for kind, factor in factors.items() if not math.isnan(factor)}
        if not factors:
            raise UserError(
                f'{self.plain} has no plain convolution that is trained under the name of a block '
                f'that is trained, such as {self.layers[0].name}: wanted the same network, plain'
            )
        return self._multiplied(**factors)

    def _multiplied(self, **factors: float) -> dict[str, float]:
        """The multipliers times the factor for stems or for other blocks, to two digits."""
        return {
            kind: float(f'{mult * factors[FAMILY[kind]]:.2g}')
            for kind, mult in self.lr_mults.items()
            if FAMILY[kind] in factors
        }

    def heading(self) -> str:
        return f'one SGD step of {self.what}'

    def columns(self) -> list[Column]:
        def cell(layer: Layer, number: str) -> str:
            if layer.frozen:
                return 'frozen' if number == NUMBERS[0] else ''
            return format_spread(layer.spread(number))

        def plain_cell(layer: Layer) -> str:
            return f'{self.plain_steps[layer.name]:.3g}' if layer.name in self.plain_steps else '-'

        columns = [
            Column('layer', lambda layer: layer.name, left=True),
            Column('kernel', lambda layer: layer.kind, left=True),
            Column('shape', lambda layer: 'x'.join(map(str, layer.shape)), left=True),
            *[Column(number, partial(cell, number=number)) for number in NUMBERS],
        ]
        if self.plain:
            columns.append(Column('relative, plain network', plain_cell))
        return columns

    def stands_out(self, row: Layer) -> bool:
        return row.kind == 'stem'

    def summary(self) -> list[str]:
        lines = self.findings()
        for like, meaning in LIKE.items():
            if like == 'network' and not self.plain:
                continue
            try:
                lines.append(f'to step like {meaning}: {format_mults(self.suggest(like))}')
            except UserError as error:
                if like in ('plain', 'network'):
                    lines.append(str(error))
        return lines

    def findings(self) -> list[str]:
        """The stem's numbers and the other blocks', a line each, as far as there are any."""
        lines = []
        if not math.isnan(self.stem()):
            lines.append(
                f'stem: gain {self.stem():.3g}, relative {self.stem("relative"):.3g}, '
                f'under {self._mults_of("stem")}'
            )
        if not math.isnan(self.others()):
            lines.append(
                f'other blocks, median: gain {self.others():.3g}, '
                f'relative {self.others("relative"):.3g}, under {self._mults_of("block")}'
            )
        if not math.isnan(self.lag(False)):
            lines.append(
                f'plain network ({self.plain}): its steps are {self.lag(False):.3g} times as long '
                'relative to the kernels, median over the other blocks'
            )
        return lines

    def _mults_of(self, family: str) -> str:
        mults = self.lr_mults.items()
        return format_mults({kind: mult for kind, mult in mults if FAMILY[kind] == family})

    def content(self) -> dict:
        suggested = {}
        for like in LIKE:
            with contextlib.suppress(UserError):
                suggested[like] = self.suggest(like)
        return dict(asdict(self), suggested=suggested)

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
            f'How far one SGD step moves each generated kernel\n{self.what}\n'
            f'{format_mults(self.lr_mults)}',
            fontsize=10,
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
            elif layer.name in self.plain_steps:
                look = dict(color='black', markersize=6, label='the plain network, median')
                axes.plot([self.plain_steps[layer.name]], [row], 'x', **look)
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
        if number == 'relative':
            names = {layer.name for layer in self.layers}
            drawn += [step for name, step in self.plain_steps.items() if name in names]
        if drawn:
            logarithmic(axes.xaxis, min(drawn), max(drawn))
        grid(axes)


def study(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    batches: int = 4,
    plain_cfg: Config | None = None,
    plain_checkpoint: str | os.PathLike | None = None,
) -> StepReport:
    """Measure the network of a config on batches of its training data.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form. By default the network is
            as training starts: freshly initialised, or from the config's ``load_from`` and
            ``init_cfg``.
        batches (int): How many to run. Defaults to 4.
        plain_cfg (Config, optional): Of the same network with plain convolutions, to compare with.
        plain_checkpoint (str | os.PathLike, optional): One of ``plain_cfg``. By default that
            network is as training starts.

    Returns:
        StepReport: See there.

    Raises:
        UserError: If the checkpoint does not fit or is in another form, the data is not there, or
            for the reasons of :func:`mmorepa.lab.analysis.effective_lr.measure`.
    """
    for one in filter(None, (cfg, plain_cfg)):
        if one.get('train_dataloader') is None or one.get('optim_wrapper') is None:
            raise UserError('the config has no train_dataloader or no optim_wrapper: wanted both')
    network = load_network(cfg, checkpoint)
    blocks_of(network.model)
    data, count = first_batches(cfg, batches)
    layers = measure(network.model, data, cfg.optim_wrapper)
    plain, plain_steps = '', {}
    if plain_cfg is not None:
        plain_network = load_network(plain_cfg, plain_checkpoint, training_form=False)
        plain = str(plain_network)
        data, _ = first_batches(plain_cfg, count)
        plain_steps = measure_plain(plain_network.model, data, plain_cfg.optim_wrapper)
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    return StepReport(
        config=network.config,
        checkpoint=network.checkpoint,
        batches=count,
        layers=layers,
        lr_mults={
            kind: paramwise.get(kind, {}).get('lr_mult', 1)
            for kind, family in FAMILY.items()
            if kind == family or 'lr_mult' in paramwise.get(kind, {})
        },
        plain=plain,
        plain_steps=plain_steps,
    )


def first_batches(cfg: Config, count: int) -> tuple[Iterable, int]:
    """The first batches of a config's training data, with a bar, and how many there are."""
    loader = build_loader(cfg, 'train_dataloader')
    count = min(count, len(loader))
    console = Console(stderr=True)
    batches = islice(loader, count)
    return track(batches, 'batches', total=count, console=console, transient=True), count


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
    changed = 'The blocks now step' if like == 'network' else 'The stem now steps'
    text = f"""\
# Written by tools/analyze.py effective-lr, which found on {report.batches} batches of
# {report.config}, {report.checkpoint}:
# {measured}
# {changed} like {LIKE[like]}.
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
    return mean_of((layer.spread(number)[1] for layer in layers), median)
