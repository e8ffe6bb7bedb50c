"""What two configs differ by, seed by seed: the mean of the differences and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The metric of one config minus that of another, over the seeds that both have.

    A seed means the same data in the same order, so the pairs share what the seed does.

    Attributes:
        config (str): The one.
        against (str): The other.
        metric (str): Of which; the higher the better.
        seeds (list[int]): Of the pairs, at least one.
        values (list[float]): The difference of each.
        time (float): How many times as long as the other the one trains: iterations times the
            step that nothing else disturbs.
        digits (int): Behind the point, where numbers are shown. See :func:`digits_of`.
    """

    config: str
    against: str
    metric: str
    seeds: list[int]
    values: list[float]
    time: float
    digits: int = 2

    @property
    def mean(self) -> float:
        """Of the differences."""
        return mean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the true mean is with 95 % confidence, by Student's t; None for a single pair."""
        count = len(self.values)
        if count < 2:
            return None
        from scipy.stats import t

        reach = t.ppf((1 + CONFIDENCE) / 2, count - 1) * stdev(self.values) / math.sqrt(count)
        return self.mean - reach, self.mean + reach

    @property
    def sentence(self) -> str:
        """What the numbers support, and no more."""
        pairs = f'{len(self.values)} pair{"s" * (len(self.values) != 1)} of runs'
        found = f'{self.signed(self.mean)} {self.metric} on the mean of {pairs}'
        time = f'at {self.time:.2f} times its training time'
        if self.interval is None:
            return (
                f'{self.config} against {self.against}: {found}, {time}; one pair does not say '
                'what another seed would give.'
            )
        low, high = self.interval
        within = f'95 % interval {self.signed(low)} to {self.signed(high)}'
        # Up to the rounding of their subtraction.
        if equal := math.isclose(min(self.values), max(self.values), abs_tol=1e-9):
            within = 'equal differences give no interval'
        if low <= 0 <= high:
            return (
                f'{self.config} and {self.against} cannot be told apart: {found}, {within}, {time}.'
            )
        side = 'against' if equal else 'is above' if low > 0 else 'is below'
        return f'{self.config} {side} {self.against}: {found}, {within}, {time}.'

    def signed(self, number: float) -> str:
        """A difference as it is shown."""
        return f'{number:+.{self.digits}f}'


def digits_of(values: Iterable[float]) -> int:
    """Digits behind the point that tell a metric's values apart: 2 for percent, 4 up to 1."""
    return 2 if max(map(abs, values)) > 1 else 4
