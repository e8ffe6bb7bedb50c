"""What the reports write: JSON and pictures, whole or not at all, and where to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checkpoints.files import written_whole
from ..errors import UserError

#: Colours that colour-blind readers can tell apart (Okabe and Ito's).
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#000000')
#: Of what is shown beside them.
GREY = '#555555'


def check_folder(path: str | os.PathLike) -> Path:
    """Make sure that results can go there, before anything is computed; nothing is made.

    Args:
        path (str | os.PathLike): A folder, there or not.

    Returns:
        Path: The folder.

    Raises:
        UserError: If it is a file or below one, or may not be written to.
    """
    folder = Path(path)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f'{nearest} is a file: wanted a folder for results, choose another --out')
    if not os.access(nearest, os.W_OK):
        raise UserError(f'{nearest} may not be written to: choose another --out')
    return folder


def write_json(content: dict, path: str | os.PathLike) -> None:
    """Write ``content``; numbers that do not exist, NaN and infinity, become null.

    Args:
        content (dict): Plain values, nested or not.
        path (str | os.PathLike): Where to; written whole or not at all.
    """
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + '\n'
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def _finite(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def write_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PNG; whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format='png')


def spread_out(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` places, first and last among them, evenly between.

    Example:
        >>> spread_out(10, 4)
        [0, 3, 6, 9]
    """
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def short(name: str) -> str:
    """A layer's name for tables and pictures: without what all names of a backbone share.

    Example:
        >>> short('backbone.layer1.0.conv2'), short('backbone.stage_1.0.branch_reparam')
        ('layer1.0.conv2', 'stage_1.0')
    """
    return name.removeprefix('backbone.').replace('.branch_reparam', '')


def format_number(value: float, digits: int = 3) -> str:
    """``value`` with so many digits behind the point; ``-`` for NaN."""
    # No sign in front of what rounds to zero.
    return '-' if math.isnan(value) else f'{round(value, digits) + 0.0:.{digits}f}'


def mean_of(values: Iterable[float]) -> float:
    """The mean of the numbers that are there; NaN if none is."""
    found = [value for value in values if not math.isnan(value)]
    return mean(found) if found else math.nan


def mark_layers(axes: Axes, names: Sequence[str]) -> None:
    """Write layers' names under an axis, as many as there is room for."""
    places = spread_out(len(names), 25)
    axes.set_xticks(places, [short(names[i]) for i in places], fontsize=7, rotation=60, ha='right')
    axes.grid(color='#dddddd', linewidth=0.5)
    axes.set_axisbelow(True)


def legend_above(axes: Axes, columns: int = 6) -> None:
    """Put the legend above the axes, where it hides nothing."""
    axes.legend(fontsize=8, ncols=columns, loc='lower center', bbox_to_anchor=(0.5, 1.0))
