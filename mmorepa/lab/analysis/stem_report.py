"""The kernel of a deep linear stem next to a plain stem's: measured, shown, written."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.table import Table
from torch import Tensor, nn

from ...convs import OREPAConv2d
from ...convs.orepa.block import DeepLinearStem
from ...engine.networks import Network, load_network
from ...errors import UserError
from .. import report as output
from .kernel_statistics import REACH, Statistics, bin_centres, statistics

#: What the plain stem is called that no config was given for.
KAIMING = 'a fresh plain stem (Kaiming)'


@dataclass(frozen=True)
class Report:
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

    @property
    def both(self) -> list[tuple[str, Statistics]]:
        """What to call each, and its numbers."""
        return [('deep linear stem', self.stem), ('plain stem', self.plain)]


def study(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    plain_cfg: Config | None = None,
    plain_checkpoint: str | os.PathLike | None = None,
) -> Report:
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
        Report: See there.

    Raises:
        UserError: If there is no deep linear stem, the plain network has no plain convolution of
            that name and shape, or see :func:`mmorepa.engine.networks.load_network`.
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
    return Report(name, str(network), plain_title, statistics(kernel), statistics(plain))


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


def table(report: Report) -> Table:
    """A row a stem."""
    shown = Table(
        title=f'{report.name}: {report.title}; plain: {report.plain_title}',
        caption='extreme: the largest magnitude in standard deviations; norms: length of the '
        "output channels' kernels;\nstable rank: |W|^2 over the square of the largest singular "
        'value; middle 3x3: its part of |W|^2',
    )
    shown.add_column('stem', no_wrap=True)
    columns = (
        'std',
        'excess kurtosis',
        'extreme',
        'norms: lowest to highest',
        'ratio',
        'stable rank',
        'middle 3x3',
    )
    for column in columns:
        shown.add_column(column, justify='right')
    for text, found in report.both:
        shown.add_row(
            text,
            f'{found.std:.4f}',
            f'{found.kurtosis:.2f}',
            f'{found.extreme:.1f}',
            f'{found.norms[-1]:.3f} to {found.norms[0]:.3f}',
            f'{found.norm_ratio:.1f}',
            f'{found.rank:.1f} of {len(found.singular_values)}',
            f'{found.centre:.1%}',
        )
    return shown


def summary(report: Report) -> list[str]:
    """What differs most, a sentence a line."""
    stem, plain = report.stem, report.plain
    even = 9 / (stem.shape[-1] ** 2)
    return [
        f'the numbers of the deep linear stem are {stem.std / plain.std:.2f} times as large, with '
        f'excess kurtosis {stem.kurtosis:.2f} against {plain.kurtosis:.2f}',
        f'its middle 3x3 positions hold {stem.centre:.1%} of the energy, those of the plain stem '
        f'{plain.centre:.1%}; spread evenly it would be {even:.1%}',
        f'its stable rank is {stem.rank:.1f}, that of the plain stem {plain.rank:.1f}',
    ]


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write all numbers; whole or not at all."""
    content = dict(
        name=report.name,
        networks=dict(stem=report.title, plain=report.plain_title),
        histogram_bins=bin_centres(),
    )
    for key, found in (('stem', report.stem), ('plain', report.plain)):
        more = dict(norm_ratio=found.norm_ratio, rank=found.rank, centre=found.centre)
        content[key] = dict(asdict(found), **more)
    output.write_json(content, path)


def write_plot(report: Report, path: str | os.PathLike) -> None:
    """Draw histogram, channel norms, singular values and energy by position, as a PNG.

    Written whole or not at all.
    """
    figure = Figure(figsize=(13, 8), layout='constrained', dpi=110)
    (histogram, norms, values), (stem, plain, text) = figure.subplots(2, 3)
    for number, (label, found) in enumerate(report.both):
        look = dict(color=output.COLOURS[number], label=label)
        histogram.step(bin_centres(), found.histogram, where='mid', **look)
        norms.plot([norm / found.norms[0] for norm in found.norms], 'o-', markersize=3, **look)
        first = found.singular_values[0]
        values.plot([v / first for v in found.singular_values], 'o-', markersize=3, **look)
    draw_normal(histogram)
    histogram.set_yscale('log')
    histogram.set_ylim(1e-4, 10)
    histogram.set_xlabel(
        'numbers of the kernel, in standard deviations\n(those beyond at the ends)'
    )
    histogram.set_ylabel('density')
    norms.set_xlabel('output channels, largest first')
    norms.set_ylabel('length, over the largest')
    norms.set_ylim(bottom=0)
    values.set_xlabel('singular values, largest first')
    values.set_ylabel('over the largest')
    values.set_yscale('log')
    for axes in (histogram, norms, values):
        axes.grid(color='#dddddd', linewidth=0.5)
        axes.set_axisbelow(True)
        output.legend_above(axes, 3)
    highest = max(max(map(max, found.taps)) for _, found in report.both)
    for axes, (label, found) in zip((stem, plain), report.both):
        draw_taps(axes, found, highest)
        axes.set_title(f'{label}: % of the energy at each position', fontsize=9)
    text.axis('off')
    text.text(0, 1, '\n'.join(numbers_of(report)), va='top', family='monospace', fontsize=9)
    figure.suptitle(f'{report.name}: {report.title}\nplain: {report.plain_title}', fontsize=10)
    output.write_figure(figure, path)


def draw_normal(axes: Axes) -> None:
    """Draw the density of the standard normal distribution."""
    x = torch.linspace(-REACH, REACH, 201)
    y = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    axes.plot(x, y, linestyle=':', color=output.GREY, linewidth=1, label='normal')


def draw_taps(axes: Axes, found: Statistics, highest: float) -> None:
    """Draw the part of the energy at each position, in per cent."""
    axes.imshow(found.taps, cmap='viridis', vmin=0, vmax=highest)
    for i, row in enumerate(found.taps):
        for j, value in enumerate(row):
            colour = 'black' if value > 0.6 * highest else 'white'
            text = output.format_number(100 * value, 1)
            axes.text(j, i, text, ha='center', va='center', fontsize=8, color=colour)
    axes.set_xticks([])
    axes.set_yticks([])


def numbers_of(report: Report) -> list[str]:
    """The table as lines of text."""
    lines = [f'{"":18}{"deep linear":>13}{"plain":>11}']
    for label, number in (
        ('std', lambda found: f'{found.std:.4f}'),
        ('excess kurtosis', lambda found: f'{found.kurtosis:.2f}'),
        ('extreme, in std', lambda found: f'{found.extreme:.1f}'),
        ('lowest norm', lambda found: f'{found.norms[-1]:.3f}'),
        ('highest norm', lambda found: f'{found.norms[0]:.3f}'),
        ('stable rank', lambda found: f'{found.rank:.1f}'),
        ('middle 3x3', lambda found: f'{found.centre:.1%}'),
    ):
        lines.append(f'{label:18}{number(report.stem):>13}{number(report.plain):>11}')
    return lines
