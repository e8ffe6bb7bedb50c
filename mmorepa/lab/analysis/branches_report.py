"""The branches of a network, layer by layer: how alike they are, and what each contributes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config

from ...convs.blocks.branch_kernels import BranchGram, branch_sums, measure
from ...errors import UserError
from ..drawing import (
    COLOURS,
    draw_matrix,
    layers_along,
    legend_above,
    new_figure,
    spread_out,
)
from ..network import load_network
from ..scaffold import Column, Report, format_number, mean_of, short

#: Layers whose matrices are drawn.
MATRICES = 4


@dataclass(frozen=True)
class Layer:
    """One sum of branches.

    Attributes:
        name (str): See :class:`mmorepa.convs.blocks.branch_kernels.Sum`.
        kind (str): See there.
        scaled (BranchGram): The branches' kernels as they are added up.
        bare (BranchGram): The kernels without their scales, or without the BatchNorms behind
            them.
    """

    name: str
    kind: str
    scaled: BranchGram
    bare: BranchGram

    def share(self, name: str) -> float:
        """The share of a branch in the kernel; NaN where the layer does not have the branch."""
        return dict(zip(self.scaled.names, self.scaled.shares)).get(name, math.nan)


@dataclass(frozen=True)
class BranchReport(Report):
    """The branches of a network.

    Attributes:
        title (str): Config and checkpoint.
        layers (list[Layer]): In the network's order.
    """

    title: str
    layers: list[Layer]

    caption = (
        'similarity: mean cosine of all pairs of branches; bare: without their scales; '
        'most alike: the pair of the largest cosine,\nscales included; the other columns: the '
        "branch's share in the kernel, which add up to 1"
    )

    @property
    def names(self) -> list[str]:
        """The names of all branches that a layer has."""
        return list(dict.fromkeys(name for layer in self.layers for name in layer.scaled.names))

    def mean(self, number: str, grams: str = 'scaled') -> float:
        """The mean of a number over all layers that have it.

        Args:
            number (str): ``'similarity'`` or ``'magnitude'``.
            grams (str): ``'scaled'`` or ``'bare'``.
        """
        return mean_of(getattr(getattr(layer, grams), number) for layer in self.layers)

    def mean_share(self, name: str) -> float:
        """The mean share of a branch over the layers that have it."""
        return mean_of(layer.share(name) for layer in self.layers)

    def heading(self) -> str:
        return f'branches of {self.title}'

    def columns(self) -> list[Column]:
        def share_of(name: str) -> Column:
            return Column(name, lambda layer: format_number(layer.share(name), 2))

        return [
            Column('layer', lambda layer: short(layer.name), left=True),
            Column('kernel', lambda layer: layer.kind, left=True),
            Column('similarity', lambda layer: format_number(layer.scaled.similarity, 4)),
            Column('bare', lambda layer: format_number(layer.bare.similarity, 4)),
            Column('most alike', lambda layer: format_pair(layer.scaled)),
            *map(share_of, self.names),
        ]

    def summary(self) -> list[str]:
        lines = []
        for grams, text in (('scaled', 'with scales'), ('bare', 'without scales')):
            similarity, magnitude = (
                format_number(self.mean(number, grams), 4) for number in ('similarity', 'magnitude')
            )
            lines.append(
                f'{text}: mean similarity {similarity}, mean magnitude of the cosines {magnitude}'
            )
        shares = ', '.join(
            f'{name} {format_number(self.mean_share(name), 2)}' for name in self.names
        )
        return [*lines, f'mean shares in the kernel: {shares}']

    def content(self) -> dict:
        layers = [
            dict(
                name=layer.name,
                kind=layer.kind,
                branches=layer.scaled.names,
                with_scales=as_dict(layer.scaled),
                without_scales=as_dict(layer.bare),
            )
            for layer in self.layers
        ]
        means = {
            key: {number: self.mean(number, grams) for number in ('similarity', 'magnitude')}
            for key, grams in (('with_scales', 'scaled'), ('without_scales', 'bare'))
        }
        return dict(network=self.title, mean=means, layers=layers)

    def draw(self) -> Figure:
        chosen = [self.layers[place] for place in spread_out(len(self.layers), MATRICES)]
        figure = new_figure(14, 12)
        figure.get_layout_engine().set(h_pad=0.2)
        above, below = figure.subfigures(2, 1, height_ratios=(1.6, 1))
        panels = above.subplots(2, len(chosen), squeeze=False)
        limit = colour_limit(chosen)
        shown_before: tuple[str, ...] = ()
        for column, layer in zip(panels.T, chosen):
            grams = {'scales included': layer.scaled, 'without scales': layer.bare}
            names = tuple(layer.scaled.names)
            for axes, (text, gram) in zip(column, grams.items()):
                image = draw_matrix(axes, gram.cosines, -limit, limit, size=7)
                places = range(len(names))
                axes.set_xticks(places, names, fontsize=7, rotation=40, ha='right')
                if names != shown_before:
                    axes.set_yticks(places, names, fontsize=7)
                axes.set_title(f'{short(layer.name)}: {text}', fontsize=9)
            shown_before = names
        above.colorbar(
            image,
            ax=panels,
            shrink=0.6,
            extend='both',
            label='cosine of the kernels of two branches\n(full colour: the largest, rounded up)',
        )
        left, right = below.subplots(1, 2)
        self.draw_similarity(left)
        self.draw_shares(right)
        figure.suptitle(
            f'How alike the kernels of the branches of each layer are, and what each contributes\n'
            f'{self.title}',
            fontsize=11,
        )
        return figure

    def draw_similarity(self, axes: Axes) -> None:
        """Draw the similarity with and without scales over depth."""
        for grams, mark, colour, label in (
            ('scaled', 'o', 0, 'scales included'),
            ('bare', 's', 1, 'without scales'),
        ):
            values = [getattr(layer, grams).similarity for layer in self.layers]
            look = dict(color=COLOURS[colour], label=label)
            axes.plot(range(len(values)), values, mark, linestyle='-', **look)
        axes.set_ylabel('mean cosine of all pairs of branches')
        self.finish(axes)

    def draw_shares(self, axes: Axes) -> None:
        """Draw each branch's share in the kernel over depth."""
        for number, name in enumerate(self.names):
            look = dict(
                color=COLOURS[number % len(COLOURS)],
                linestyle='-' if number < len(COLOURS) else '--',
                marker='o',
                markersize=3,
            )
            # A line joins what has the same branches: not a block and the one inside of it.
            for names in dict.fromkeys(layer.scaled.names for layer in self.layers):
                if name in names:
                    found = [
                        (row, layer.share(name))
                        for row, layer in enumerate(self.layers)
                        if layer.scaled.names == names
                    ]
                    axes.plot(*zip(*found), **look)
            axes.plot([], [], label=name, **look)
        axes.set_ylabel("a branch's share in the kernel\n(the shares of a layer add up to 1)")
        self.finish(axes)

    def finish(self, axes: Axes) -> None:
        """Mark zero, the layers, and what is what."""
        axes.axhline(0, color='black', linewidth=0.8)
        legend_above(axes)
        layers_along(axes, [layer.name for layer in self.layers])


def study(cfg: Config, checkpoint: str | os.PathLike | None = None) -> BranchReport:
    """Compare the branches of each layer of a config's network.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form; by default as training
            starts.

    Returns:
        BranchReport: See there.

    Raises:
        UserError: If no block has branches with names, or see
            :func:`mmorepa.lab.network.load_network`.
    """
    network = load_network(cfg, checkpoint)
    sums = branch_sums(network.model)
    if not sums:
        raise UserError(
            f'the blocks of {network.config} have no branches to compare: wanted OREPA, DBB, '
            'RepVGG, ACNet or MobileOne'
        )
    layers = [
        Layer(found.name, found.kind, measure(found.branches), measure(found.branches, False))
        for found in sums
    ]
    return BranchReport(str(network), layers)


def format_pair(gram: BranchGram) -> str:
    """The pair of branches whose cosine is largest, with it: ``average ~ prior 0.048``."""
    if not gram.pairs:
        return '-'
    (first, second), cosine = max(gram.pairs.items(), key=lambda item: item[1])
    return f'{first} ~ {second} {cosine:.3f}'


def as_dict(gram: BranchGram) -> dict:
    """All that is said of a sum of branches, in plain values."""
    return dict(
        similarity=gram.similarity,
        magnitude=gram.magnitude,
        kernel_norm=gram.kernel_norm,
        norms=dict(zip(gram.names, gram.norms)),
        shares=dict(zip(gram.names, gram.shares)),
        cosines=gram.cosines,
    )


def colour_limit(layers: Sequence[Layer]) -> float:
    """The magnitude at which colours end: the largest cosine of different branches, rounded up."""
    cosines = [
        abs(cosine)
        for layer in layers
        for gram in (layer.scaled, layer.bare)
        for cosine in gram.pairs.values()
    ]
    return max(math.ceil(20 * max(cosines, default=0)) / 20, 0.05)
