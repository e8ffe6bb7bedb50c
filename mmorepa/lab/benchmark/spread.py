"""Medians, quartiles and extremes of repeated measurements, and of their paired ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Spread:
    """How repeated measurements of one thing are spread.

    Attributes:
        median (float): The median.
        lower (float): The lower quartile.
        upper (float): The upper quartile.
        lowest (float): The least of all.
        highest (float): The greatest of all.
    """

    median: float
    lower: float
    upper: float
    lowest: float
    highest: float

    def times(self, factor: float) -> Spread:
        """The same spread in another unit."""
        return Spread(*(factor * value for value in vars(self).values()))


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of measurements; None of none.

    Example:
        >>> spread([4, 1, 3, 2])
        Spread(median=2.5, lower=1.75, upper=3.25, lowest=1, highest=4)
    """
    if not values:
        return None
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = quantiles(values, n=4, method='inclusive')
    return Spread(median, lower, upper, min(values), max(values))


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """``values`` over ``others``, repeat by repeat, as far as both have been measured.

    What slows the machine for the length of a repeat is in both, and cancels.
    """
    return [a / b for a, b in zip(values, others)]


def sums(*lists: Sequence[float]) -> list[float]:
    """Several quantities added up, repeat by repeat; empty if one was not measured."""
    return [sum(values) for values in zip(*lists)]
