"""The branches of a network layer by layer: measured, shown, written."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.table import Table

from ...convs.blocks.branch_kernels import BranchGram, branch_sums, measure
from ...engine.networks import load_network
from ...errors import UserError
from .. import report as output

#: Layers whose matrices are drawn.
MATRICES = 4


@dataclass(frozen=True)
class Layer:
    """One sum of branches.

    Attributes:
        name (str): See :class:`mmorepa.convs.blocks.branch_kernels.Sum`.
        kind (str): See there.
        scaled (BranchGram): Of the kernels as they are added up.
        bare (BranchGram): Of the kernels without their scales, or without the BatchNorms behind
            them.
    """

    name: str
    kind: str
    scaled: BranchGram
    bare: BranchGram


@dataclass(frozen=True)
class Report:
    """The branches of a network.

    Attributes:
        title (str): Config and checkpoint.
        layers (list[Layer]): In the network's order.
    """

    title: str
    layers: list[Layer]

    @property
    def names(self) -> list[str]:
        """Of all branches that a layer has."""
        return list(dict.fromkeys(name for layer in self.layers for name in layer.scaled.names))

    def mean(self, number: str, grams: str = 'scaled') -> float:
        """The mean of a number over all layers that have it.

        Args:
            number (str): ``'similarity'`` or ``'magnitude'``.
            grams (str): ``'scaled'`` or ``'bare'``.
        """
        values = [getattr(getattr(layer, grams), number) for layer in self.layers]
        return output.mean_of(values)

    def mean_share(self, name: str) -> float:
        """The mean share of a branch over the layers that have it."""
        return output.mean_of(
            layer.scaled.shares[layer.scaled.names.index(name)]
            for layer in self.layers
            if name in layer.scaled.names
        )


def study(cfg: Config, checkpoint: str | os.PathLike | None = None) -> Report:
    """Compare the branches of each layer of a config's network.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form; by default as training
            starts.

    Returns:
        Report: See there.

    Raises:
        UserError: If no block has branches with names, or see
            :func:`mmorepa.engine.networks.load_network`.
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
    return Report(str(network), layers)


def table(report: Report) -> Table:
    """A row a layer: how alike its branches are, and what each has in the kernel."""
    shown = Table(
        title=f'branches of {report.title}',
        caption='similarity: mean cosine of all pairs of branches; bare: without their scales; '
        'most alike: the pair of the largest cosine,\nscales included; the other columns: the '
        "branch's share in the kernel, which add up to 1",
    )
    for column in ('layer', 'kernel'):
        shown.add_column(column, no_wrap=True)
    for column in ('similarity', 'bare', 'most alike', *report.names):
        shown.add_column(column, justify='right', no_wrap=True)
    for layer in report.layers:
        shares = dict(zip(layer.scaled.names, layer.scaled.shares))
        shown.add_row(
            output.short(layer.name),
            layer.kind,
            output.format_number(layer.scaled.similarity, 4),
            output.format_number(layer.bare.similarity, 4),
            format_pair(layer.scaled),
            *[output.format_number(shares.get(name, math.nan), 2) for name in report.names],
        )
    return shown


def format_pair(gram: BranchGram) -> str:
    """The pair of branches whose cosine is largest, with it: ``average ~ prior 0.048``."""
    if not gram.pairs:
        return '-'
    (first, second), cosine = max(gram.pairs.items(), key=lambda item: item[1])
    return f'{first} ~ {second} {cosine:.3f}'


def summary(report: Report) -> list[str]:
    """What the table says in the mean over the layers, a sentence a line."""
    lines = []
    for grams, text in (('scaled', 'with scales'), ('bare', 'without scales')):
        similarity, magnitude = (
            output.format_number(report.mean(number, grams), 4)
            for number in ('similarity', 'magnitude')
        )
        lines.append(
            f'{text}: mean similarity {similarity}, mean magnitude of the cosines {magnitude}'
        )
    shares = ', '.join(
        f'{name} {output.format_number(report.mean_share(name), 2)}' for name in report.names
    )
    return [*lines, f'mean shares in the kernel: {shares}']


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


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write all numbers, the matrices in the order of ``branches``; whole or not at all."""
    layers = [
        dict(
            name=layer.name,
            kind=layer.kind,
            branches=layer.scaled.names,
            with_scales=as_dict(layer.scaled),
            without_scales=as_dict(layer.bare),
        )
        for layer in report.layers
    ]
    means = {
        key: {number: report.mean(number, grams) for number in ('similarity', 'magnitude')}
        for key, grams in (('with_scales', 'scaled'), ('without_scales', 'bare'))
    }
    output.write_json(dict(network=report.title, mean=means, layers=layers), path)


def write_plot(report: Report, path: str | os.PathLike) -> None:
    """Draw the matrices of some layers, and similarity and shares over depth, as a PNG.

    Written whole or not at all.
    """
    places = output.spread_out(len(report.layers), MATRICES)
    chosen = [report.layers[place] for place in places]
    figure = Figure(figsize=(14, 12), layout='constrained', dpi=110)
    figure.get_layout_engine().set(h_pad=0.1)
    above, below = figure.subfigures(2, 1, height_ratios=(1.6, 1))
    panels = above.subplots(2, len(chosen), squeeze=False)
    limit = colour_limit(chosen)
    for column, layer in zip(panels.T, chosen):
        for axes, gram, text in zip(
            column, (layer.scaled, layer.bare), ('with scales', 'without scales')
        ):
            image = draw_matrix(axes, gram, limit)
            axes.set_title(f'{output.short(layer.name)}\n{text}', fontsize=9)
    above.colorbar(image, ax=panels, shrink=0.6, label='cosine', extend='both')
    left, right = below.subplots(1, 2)
    draw_similarity(left, report)
    draw_shares(right, report)
    figure.suptitle(f'branches of {report.title}', fontsize=11)
    output.write_figure(figure, path)


def colour_limit(layers: Sequence[Layer]) -> float:
    """The magnitude at which colours end: the largest cosine of different branches, rounded up."""
    cosines = [
        abs(cosine)
        for layer in layers
        for gram in (layer.scaled, layer.bare)
        for cosine in gram.pairs.values()
    ]
    return max(math.ceil(20 * max(cosines, default=0)) / 20, 0.05)


def draw_matrix(axes: Axes, gram: BranchGram, limit: float):
    """Draw the cosines of all pairs; returns the image."""
    image = axes.imshow(gram.cosines, cmap='RdBu_r', vmin=-limit, vmax=limit)
    for i, row in enumerate(gram.cosines):
        for j, cosine in enumerate(row):
            colour = 'white' if abs(cosine) > 0.6 * limit else 'black'
            text = output.format_number(cosine, 2)
            axes.text(j, i, text, ha='center', va='center', fontsize=7, color=colour)
    places = range(len(gram.names))
    axes.set_xticks(places, gram.names, fontsize=7, rotation=40, ha='right')
    axes.set_yticks(places, gram.names, fontsize=7)
    return image


def draw_similarity(axes: Axes, report: Report) -> None:
    """Draw the similarity with and without scales over depth."""
    rows = range(len(report.layers))
    for grams, mark, colour in (('scaled', 'o', 0), ('bare', 's', 1)):
        values = [getattr(layer, grams).similarity for layer in report.layers]
        label = 'with scales' if grams == 'scaled' else 'without scales'
        axes.plot(rows, values, mark, linestyle='-', color=output.COLOURS[colour], label=label)
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_ylabel('mean cosine of all pairs')
    output.legend_above(axes)
    output.mark_layers(axes, [layer.name for layer in report.layers])


def draw_shares(axes: Axes, report: Report) -> None:
    """Draw each branch's share in the kernel over depth."""
    for number, name in enumerate(report.names):
        look = dict(
            color=output.COLOURS[number % len(output.COLOURS)],
            linestyle='-' if number < len(output.COLOURS) else '--',
        )
        # A line joins what has the same branches: not a block and the one inside of it.
        for names in dict.fromkeys(layer.scaled.names for layer in report.layers):
            if name in names:
                found = [
                    (row, layer.scaled.shares[names.index(name)])
                    for row, layer in enumerate(report.layers)
                    if layer.scaled.names == names
                ]
                axes.plot(*zip(*found), marker='o', markersize=3, **look)
        axes.plot([], [], marker='o', markersize=3, label=name, **look)
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_ylabel("a branch's share in the kernel")
    output.legend_above(axes)
    output.mark_layers(axes, [layer.name for layer in report.layers])
