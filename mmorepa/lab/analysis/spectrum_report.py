"""What the frequency prior contributes to a network's kernels, as a report."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from mmengine.config import Config

from ...convs.blocks.branch_kernels import branch_sums, measure
from ...convs.orepa.branches import Prior
from ...errors import UserError
from ..drawing import COLOURS, draw_matrix, layers_along, legend_above, new_figure, spread_out
from ..network import load_network
from ..scaffold import Column, Report, mean_of, short
from .spectrum import (
    Filter,
    Spectrum,
    constant_share,
    distinct_filters,
    rows_and_columns_share,
    shares,
)
from .spectrum import measure as measure_spectra

#: Layers whose spectra are drawn, and filters.
SPECTRA, FILTERS = 4, 8


@dataclass(frozen=True)
class SpectrumReport(Report):
    """What the frequency prior contributes.

    Attributes:
        title (str): Config and checkpoint.
        spectra (list[Spectrum]): Of each kernel, in the network's order.
        priors (dict[str, float]): The share of the prior branch in each sum of branches, see
            :mod:`mmorepa.convs.blocks.branch_kernels`; layers of a deep linear stem one by one.
        filters (dict[str, list[Filter]]): The filters that differ, by kernel size and channels.
    """

    title: str
    spectra: list[Spectrum]
    priors: dict[str, float]
    filters: dict[str, list[Filter]]

    caption = (
        'change: length of what the prior adds, over the length of the kernel; constant: energy '
        'at frequency (0, 0);\nalong one axis: at (u, 0) and (0, v), where the prior has its '
        'filters; parts of the energy with the prior, and without it'
    )

    def heading(self) -> str:
        return f'frequency prior of {self.title}'

    def columns(self) -> list[Column]:
        return [
            Column('layer', lambda found: short(found.name), left=True),
            Column('kernel', lambda found: found.kind, left=True),
            Column('change', lambda found: f'{found.size:.2%}'),
            Column('constant', lambda found: f'{constant_share(found.whole):.2%}'),
            Column('without', lambda found: f'{constant_share(found.without):.2%}'),
            Column('along one axis', lambda found: f'{rows_and_columns_share(found.whole):.2%}'),
            Column('without', lambda found: f'{rows_and_columns_share(found.without):.2%}'),
        ]

    def rows(self) -> list[Spectrum]:
        return self.spectra

    def summary(self) -> list[str]:
        sizes = {spectrum.name: spectrum.size for spectrum in self.spectra}
        largest = max(sizes, key=sizes.get)
        lines = [
            f'the prior changes a kernel by {mean_of(sizes.values()):.2%} of its length in the '
            f'mean, most in {largest}: {sizes[largest]:.2%}'
        ]
        for key, filters in self.filters.items():
            counts = ', '.join(f'{found.text} in {found.channels}' for found in filters)
            lines.append(f'filters of {key}: {counts}')
        return lines

    def content(self) -> dict:
        return dict(
            network=self.title,
            layers=[dict(asdict(spectrum), size=spectrum.size) for spectrum in self.spectra],
            prior_shares=self.priors,
            filters={key: list(map(asdict, found)) for key, found in self.filters.items()},
        )

    def draw(self) -> Figure:
        chosen = [self.spectra[i] for i in spread_out(len(self.spectra), SPECTRA)]
        figure = new_figure(14, 13.5)
        above, middle, below = figure.subfigures(3, 1, height_ratios=(2.4, 0.75, 1))
        draw_spectra(above, chosen)
        draw_filters(middle, *next(iter(self.filters.items())))
        left, right = below.subplots(1, 2)
        names = [spectrum.name for spectrum in self.spectra]
        rows = range(len(names))
        left.bar(rows, [100 * spectrum.size for spectrum in self.spectra], color=COLOURS[0])
        left.set_ylim(0, max(left.get_ylim()[1], 1))
        left.set_ylabel("length of what the prior adds,\n% of the kernel's length")
        layers_along(left, names)
        for part, label, colour in (
            (constant_share, 'at frequency (0, 0)', COLOURS[0]),
            (rows_and_columns_share, 'in waves along one axis', COLOURS[1]),
        ):
            for energy, style, suffix in (
                ('whole', 'o-', ''),
                ('without', 's:', ', without the prior'),
            ):
                values = [100 * part(getattr(spectrum, energy)) for spectrum in self.spectra]
                right.plot(rows, values, style, color=colour, markersize=4, label=label + suffix)
        right.set_ylabel("% of the kernel's energy")
        right.set_ylim(bottom=0)
        legend_above(right, 2)
        layers_along(right, names)
        figure.suptitle(
            'What the frequency prior, one of the branches, contributes to the kernels\n'
            f'{self.title}',
            fontsize=11,
        )
        return figure


def study(cfg: Config, checkpoint: str | os.PathLike | None = None) -> SpectrumReport:
    """Measure the spectrum of each kernel with and without its frequency prior.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form; by default as training
            starts, where the prior contributes nothing: its scale starts at zero.

    Returns:
        SpectrumReport: See there.

    Raises:
        UserError: If no block has a frequency prior, or see
            :func:`mmorepa.lab.network.load_network`.
    """
    network = load_network(cfg, checkpoint)
    spectra = measure_spectra(network.model)
    if not spectra:
        raise UserError(
            f'no block of {network.config} has a frequency prior: wanted OREPA blocks of 3x3 or '
            "more, with 'prior' among their branches"
        )
    priors, filters = {}, {}
    for found in branch_sums(network.model):
        for name, branch in found.branches.items():
            if isinstance(branch, Prior):
                gram = measure(found.branches)
                priors[found.name] = gram.shares[gram.names.index(name)]
                sizes = branch.kernel_size, branch.out_channels
                key = f'{sizes[0]}x{sizes[0]}, {sizes[1]} channels'
                filters[key] = distinct_filters(sizes[1], sizes[0])
    return SpectrumReport(str(network), spectra, priors, filters)


def draw_spectra(figure: SubFigure, chosen: list[Spectrum]) -> None:
    """Draw three rows of spectra: with the prior, without it, and what it adds."""
    panels = figure.subplots(3, len(chosen), squeeze=False)
    for column, spectrum in zip(panels.T, chosen):
        for axes, energy, text in zip(
            column,
            (spectrum.whole, spectrum.without, spectrum.change),
            ('whole kernel', 'kernel without the prior', 'what the prior adds'),
        ):
            draw_spectrum(axes, shares(energy))
            axes.set_title(f'{short(spectrum.name)}: {text}', fontsize=9)
    figure.suptitle('Energy at each frequency of the cosine transform (DCT-II), in %', fontsize=9)
    figure.supylabel('frequency u down the rows', fontsize=9)
    figure.supxlabel('frequency v along the columns', fontsize=9)


def draw_spectrum(axes: Axes, parts: list[list[float]]) -> None:
    """Draw the part of the energy at each frequency, in per cent."""
    if all(value != value for row in parts for value in row):
        axes.text(0.5, 0.5, 'nothing', ha='center', transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    parts = [[100 * value for value in row] for row in parts]
    draw_matrix(axes, parts, 0, max(map(max, parts)), digits=1, size=9 if len(parts) <= 3 else 6)
    axes.set_xticks(range(len(parts)))
    axes.set_yticks(range(len(parts)))
    axes.tick_params(labelsize=7)


def draw_filters(figure: SubFigure, key: str, filters: list[Filter]) -> None:
    """Draw the filters of the prior that differ, with how many channels have each."""
    shown = filters[:FILTERS]
    for axes, found in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        draw_matrix(axes, found.values, -1, 1)
        axes.set_title(f'{found.text}: {found.channels} channels', fontsize=9)
    more = '' if len(filters) == len(shown) else f', the first {len(shown)}'
    figure.suptitle(
        f'The fixed filters of the prior, {key}: those that differ by more than their sign{more}. '
        '"rows 1" is a wave of frequency 1 down the rows',
        fontsize=9,
    )
