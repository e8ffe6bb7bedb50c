"""What every report of the laboratory stands on: tables, files written whole, where they go.

A report is a dataclass of what was measured. It subclasses :class:`Report` and states the columns
of its table, its summary, its picture and its JSON; printing and writing are done here. What
pictures share is in :mod:`mmorepa.lab.drawing`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, ClassVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..writing import write_figure, write_json


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title (str): Its heading.
        cell (Callable[[Any], str]): Gives the text of a row, from what the row is about.
        left (bool): Whether the text lines up at the left. Defaults to False.
    """

    title: str
    cell: Callable[[Any], str]
    left: bool = False


class Report:
    """What was measured of a network: a table, sentences, a picture, and all numbers as JSON.

    A subclass is a dataclass. It has :meth:`heading`, :meth:`columns` and :meth:`draw`; a
    :attr:`caption` and a :meth:`summary` where there is something to say. A row is about each of
    its ``layers`` unless :meth:`rows` says otherwise, and all fields go into the JSON file unless
    :meth:`content` says otherwise.
    """

    #: Below the table: what its columns mean.
    caption: ClassVar[str] = ''

    def heading(self) -> str:
        """The title of the table."""
        raise NotImplementedError

    def columns(self) -> Sequence[Column]:
        """The columns of the table, for what :meth:`rows` gives."""
        raise NotImplementedError

    def rows(self) -> Iterable[Any]:
        """What the rows are about, one each."""
        return self.layers

    def stands_out(self, row: Any) -> bool:
        """Whether a row is to be printed in bold."""
        return False

    def summary(self) -> list[str]:
        """What the table says, a sentence a line."""
        return []

    def content(self) -> dict:
        """All numbers, for the JSON file."""
        return asdict(self)

    def draw(self) -> Figure:
        """The picture."""
        raise NotImplementedError

    def table(self) -> Table:
        """The table, to be printed."""
        shown = Table(title=self.heading(), caption=self.caption or None)
        columns = self.columns()
        for column in columns:
            shown.add_column(column.title, justify='left' if column.left else 'right', no_wrap=True)
        for row in self.rows():
            cells = [column.cell(row) for column in columns]
            shown.add_row(*cells, style='bold' if self.stands_out(row) else None)
        return shown

    def show(self) -> None:
        """Print the table and the summary."""
        # A pipe or a file has no width: there a row stays one line.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        console.print(self.table())
        for line in self.summary():
            print(line)

    def write_json(self, path: str | os.PathLike) -> None:
        """Write all numbers; the file is written whole or not at all."""
        write_json(self.content(), path)

    def write_picture(self, path: str | os.PathLike) -> None:
        """Write the picture as a PNG; the file is written whole or not at all."""
        write_figure(self.draw(), path)


def markdown_table(columns: Sequence[Column], rows: Iterable[Any]) -> list[str]:
    """The lines of a Markdown table; none where there are no rows."""
    lines = [
        [column.title for column in columns],
        ['---' if column.left else '--:' for column in columns],
        *[[column.cell(row) for column in columns] for row in rows],
    ]
    if len(lines) == 2:
        return []
    # A bar would end the cell.
    return ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in lines]


def reason_of(error: Exception) -> str:
    """What an exception says, in one line."""
    reason = (str(error).strip() or 'no reason given').splitlines()[0]
    return reason if isinstance(error, UserError) else f'{type(error).__name__}: {reason}'


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


def mean_of(values: Iterable[float], average: Callable[[list[float]], float] = mean) -> float:
    """The mean, or another average, of the numbers that are there; NaN if none is."""
    found = [value for value in values if not math.isnan(value)]
    return average(found) if found else math.nan


def digits(number: float) -> str:
    """Three digits, never as a power of ten."""
    return f'{number:.0f}' if abs(number) >= 100 else f'{number:.3g}'
