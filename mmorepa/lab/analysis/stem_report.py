"""The kernel of a deep linear stem next to that of a plain stem, as a report."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from torch import Tensor, nn

from ...convs import OREPAConv2d
from ...convs.orepa.block import DeepLinearStem
from ...errors import UserError
from ..drawing import COLOURS, GREY, draw_matrix, grid, legend_above, new_figure
from ..network import Network, load_network
from ..scaffold import Column, Report
from .kernel_statistics import REACH, Statistics, bin_centres, statistics

#: What the plain stem is called that no config was given for.
KAIMING = 'a fresh plain stem (Kaiming)'


@dataclass(frozen=True)
class StemReport(Report):
    """Two stems.

    Attributes:
        name (str): The stem's name in the model.
        title (str): Config and checkpoint.
        plain_title (str): Those of the plain stem.
        stem (Statistics): Of the deep linear stem's kernel.
        plain (Statistics): Of the plain stem's.
    """

    name: str
    title: str
    plain_title: str
    stem: Statistics
    plain: Statistics

    caption = (
        'extreme: the largest magnitude in standard deviations; norms: length of the output '
        "channels' kernels;\nstable rank: |W|^2 over the square of the largest singular value; "
        'middle 3x3: its part of |W|^2'
    )

    def heading(self) -> str:
        return f'{self.name}: {self.title}; plain: {self.plain_title}'

    def columns(self) -> list[Column]:
        return [
            Column('stem', lambda row: row[0], left=True),
            Column('std', lambda row: f'{row[1].std:.4f}'),
            Column('excess\nkurtosis', lambda row: f'{row[1].kurtosis:.2f}'),
            Column('extreme', lambda row: f'{row[1].extreme:.1f}'),
            Column(
                'norms:\nlowest to highest',
                lambda row: f'{row[1].norms[-1]:.3f} to {row[1].norms[0]:.3f}',
            ),
            Column('ratio', lambda row: f'{row[1].norm_ratio:.1f}'),
            Column(
                'stable\nrank', lambda row: f'{row[1].rank:.1f} of {len(row[1].singular_values)}'
            ),
            Column('middle\n3x3', lambda row: f'{row[1].centre:.1%}'),
        ]

    def rows(self) -> list[tuple[str, Statistics]]:
        return [('deep linear stem', self.stem), ('plain stem', self.plain)]

    def summary(self) -> list[str]:
        stem, plain = self.stem, self.plain
        even = 9 / (stem.shape[-1] ** 2)
        return [
            f'the numbers of the deep linear stem are {stem.std / plain.std:.2f} times as large, '
            f'with excess kurtosis {stem.kurtosis:.2f} against {plain.kurtosis:.2f}',
            f'its middle 3x3 positions hold {stem.centre:.1%} of the energy, those of the plain '
            f'stem {plain.centre:.1%}; spread evenly it would be {even:.1%}',
            f'its stable rank is {stem.rank:.1f}, that of the plain stem {plain.rank:.1f}',
        ]

    def content(self) -> dict:
        found = dict(
            name=self.name,
            networks=dict(stem=self.title, plain=self.plain_title),
            histogram_bins=bin_centres(),
        )
        for key, kernel in (('stem', self.stem), ('plain', self.plain)):
            more = dict(norm_ratio=kernel.norm_ratio, rank=kernel.rank, centre=kernel.centre)
            found[key] = dict(asdict(kernel), **more)
        return found

    def draw(self) -> Figure:
        figure = new_figure(13, 8.5)
        (histogram, norms, values), (stem, plain, text) = figure.subplots(2, 3)
        for number, (label, found) in enumerate(self.rows()):
            look = dict(color=COLOURS[number], label=label)
            histogram.step(bin_centres(), found.histogram, where='mid', **look)
            for axes, sizes in ((norms, found.norms), (values, found.singular_values)):
                axes.plot([size / sizes[0] for size in sizes], 'o-', markersize=3, **look)
        draw_normal(histogram)
        histogram.set_yscale('log')
        histogram.set_ylim(1e-4, 10)
        histogram.set_xlabel(
            "the kernel's numbers, in standard deviations\n(those beyond 8 are in the last bins)"
        )
        histogram.set_ylabel('density')
        norms.set_xlabel('output channels, the longest first')
        norms.set_ylabel("length of a channel's kernel,\nover that of the longest")
        norms.set_ylim(bottom=0)
        values.set_xlabel('singular values of the kernel as a matrix\n(output channels × the rest)')
        values.set_ylabel('singular value, over the largest')
        values.set_yscale('log')
        for axes in (histogram, norms, values):
            grid(axes)
            legend_above(axes, 3)
        highest = 100 * max(max(map(max, found.taps)) for _, found in self.rows())
        for axes, (label, found) in zip((stem, plain), self.rows()):
            taps = [[100 * value for value in row] for row in found.taps]
            draw_matrix(axes, taps, 0, highest, digits=1)
            axes.set_title(f'{label}: % of the energy |W|² at each position', fontsize=9)
        text.axis('off')
        lines = '\n'.join(self.numbers())
        text.text(0, 1, lines, va='top', family='monospace', fontsize=9)
        figure.suptitle(
            f'The kernel W of {self.name}, as a deep linear stem and as a plain convolution\n'
            f'deep linear: {self.title}; plain: {self.plain_title}',
            fontsize=10,
        )
        return figure

    def numbers(self) -> list[str]:
        """The table as lines of text."""
        lines = [f'{"":21}{"deep linear":>13}{"plain":>11}']
        for label, number in (
            ('standard deviation', lambda found: f'{found.std:.4f}'),
            ('excess kurtosis', lambda found: f'{found.kurtosis:.2f}'),
            ('largest number, in std', lambda found: f'{found.extreme:.1f}'),
            ('shortest channel', lambda found: f'{found.norms[-1]:.3f}'),
            ('longest channel', lambda found: f'{found.norms[0]:.3f}'),
            ('stable rank', lambda found: f'{found.rank:.1f}'),
            ('energy in middle 3x3', lambda found: f'{found.centre:.1%}'),
        ):
            lines.append(f'{label:23}{number(self.stem):>11}{number(self.plain):>11}')
        return [
            *lines,
            '',
            'excess kurtosis: 0 for a normal distribution,',
            'large where most are near 0 and few far away',
            'stable rank: |W|² over the square of the',
            'largest singular value',
        ]


def study(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    plain_cfg: Config | None = None,
    plain_checkpoint: str | os.PathLike | None = None,
) -> StemReport:
    """Compare the kernel of a network's deep linear stem with a plain one.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): One in training form; by default as training
            starts.
        plain_cfg (Config, optional): Of a network with a plain convolution of the same name and
            shape. By default the plain stem has the initial values of the libraries' ResNets,
            ``kaiming_normal_(mode='fan_out', nonlinearity='relu')``.
        plain_checkpoint (str | os.PathLike, optional): One of ``plain_cfg``, BatchNorms kept.

    Returns:
        StemReport: See there.

    Raises:
        UserError: If there is no deep linear stem, the plain network has no plain convolution of
            that name and shape, or see :func:`mmorepa.lab.network.load_network`.
    """
    network = load_network(cfg, checkpoint)
    name, stem = find_stem(network)
    kernel = stem.squeeze()
    if plain_cfg is None:
        plain_title = KAIMING
        plain = torch.empty_like(kernel)
        nn.init.kaiming_normal_(plain, mode='fan_out', nonlinearity='relu')
    else:
        plain_network = load_network(plain_cfg, plain_checkpoint, training_form=False)
        plain_title = str(plain_network)
        plain = plain_kernel(plain_network, name, kernel)
    return StemReport(name, str(network), plain_title, statistics(kernel), statistics(plain))


def find_stem(network: Network) -> tuple[str, OREPAConv2d]:
    """The first deep linear stem of a network, by name.

    Raises:
        UserError: If there is none.
    """
    for name, module in network.model.named_modules():
        if isinstance(module, OREPAConv2d) and isinstance(module.kernel, DeepLinearStem):
            return name, module
    raise UserError(
        f'{network.config} has no deep linear stem: wanted a network with an OREPA block of 7x7 '
        'or more, such as a ResNet'
    )


def plain_kernel(network: Network, name: str, like: Tensor) -> Tensor:
    """The weight of the plain convolution of that name, of the shape of ``like``.

    Raises:
        UserError: If there is none, or it is no plain one in front of a BatchNorm.
    """
    conv = dict(network.model.named_modules()).get(name)
    if type(conv) is not nn.Conv2d:
        found = 'nothing' if conv is None else f'a {type(conv).__name__}'
        raise UserError(
            f'{network} has {found} at {name}, wanted a plain convolution: give the config of '
            'the plain network to --plain'
        )
    if conv.weight.shape != like.shape:
        found, wanted = (list(tensor.shape) for tensor in (conv.weight, like))
        raise UserError(
            f'{name} of {network} has the shape {found}, wanted {wanted}: give a plain network '
            'as wide as the other to --plain'
        )
    if conv.bias is not None:
        raise UserError(
            f'{network} is in deploy form, its BatchNorms are folded into the kernels: '
            'give --plain a checkpoint with BatchNorms'
        )
    return conv.weight


def draw_normal(axes: Axes) -> None:
    """Draw the density of the standard normal distribution."""
    x = torch.linspace(-REACH, REACH, 201)
    y = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    look = dict(linestyle=':', color=GREY, linewidth=1)
    axes.plot(x, y, label='normal distribution', **look)
