"""What the pictures of the laboratory share: colours, grids, legends, matrices, layers' names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .scaffold import format_number, short

#: Colours that colour-blind readers can tell apart (Okabe and Ito's).
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#000000')
#: The colour of what is shown beside them.
GREY = '#555555'


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that keeps its parts from overlapping."""
    return Figure(figsize=(width, height), layout='constrained', dpi=110)


def grid(axes: Axes, axis: str = 'both') -> None:
    """Draw a light grid behind everything else, along ``'x'``, ``'y'`` or ``'both'``."""
    axes.grid(axis=axis, color='#dddddd', linewidth=0.5)
    axes.set_axisbelow(True)


def logarithmic(axis: Axis, lowest: float, highest: float) -> None:
    """Mark a logarithmic axis at round numbers: the longer it is, the fewer in each decade.

    Args:
        axis (Axis): ``axes.xaxis`` or ``axes.yaxis``, with a logarithmic scale.
        lowest (float): The least number that is drawn.
        highest (float): The greatest one.
    """
    decades = math.log10(highest / lowest)
    subs = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axis.set_minor_locator(NullLocator())


def legend_above(axes: Axes, columns: int = 6) -> None:
    """Put the legend above the axes, where it hides nothing."""
    axes.legend(fontsize=8, ncols=columns, loc='lower center', bbox_to_anchor=(0.5, 1.0))


def legend_below(figure: Figure, *panels: Axes) -> None:
    """Put one legend below the figure, with what is labelled in any of the panels."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            found.setdefault(label, handle)
    labels, handles = list(found), list(found.values())
    # Inches that the longest takes: its handle, and its letters.
    widest = 0.7 + 0.085 * max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(figure.get_figwidth() / widest)))
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, fontsize=9)


def spread_out(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` places, first and last among them, evenly between.

    Example:
        >>> spread_out(10, 4)
        [0, 3, 6, 9]
    """
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def layers_along(axes: Axes, names: Sequence[str]) -> None:
    """Write layers' names below the axes, as many as there is room for."""
    places = spread_out(len(names), 25)
    axes.set_xticks(places, [short(names[i]) for i in places], fontsize=7, rotation=60, ha='right')
    grid(axes)


def rows_down(axes: Axes, names: Sequence[str]) -> None:
    """Write the rows' names beside the axes, the first one at the top."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)


def draw_matrix(
    axes: Axes,
    values: Sequence[Sequence[float]],
    lowest: float,
    highest: float,
    digits: int = 2,
    size: int = 8,
):
    """Draw a matrix as coloured boxes with its numbers in them.

    Args:
        axes (Axes): Gets no ticks.
        values (Sequence[Sequence[float]]): The numbers.
        lowest (float): The number at which colours begin. If it is below zero, zero is white;
            else the lowest is dark.
        highest (float): The number at which they end.
        digits (int): Of the numbers, behind the point. Defaults to 2.
        size (int): Of the letters. Defaults to 8.

    Returns:
        AxesImage: See there; for a colour bar.
    """
    around_zero = lowest < 0
    colours = 'RdBu_r' if around_zero else 'viridis'
    image = axes.imshow(values, cmap=colours, vmin=lowest, vmax=highest)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            is_far = abs(value) > 0.6 * highest
            colour = 'white' if is_far == around_zero else 'black'
            text = format_number(value, digits)
            axes.text(j, i, text, ha='center', va='center', fontsize=size, color=colour)
    axes.set_xticks([])
    axes.set_yticks([])
    return image
