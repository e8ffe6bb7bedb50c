"""Medians, quartiles and paired ratios."""

import pytest

from mmorepa.lab.benchmark.spread import Spread, ratios, spread, sums


@pytest.mark.parametrize(
    'values, expected',
    [
        ([3.0], Spread(3, 3, 3, 3, 3)),
        ([1.0, 3.0], Spread(2, 1.5, 2.5, 1, 3)),
        ([5.0, 1.0, 2.0, 4.0, 3.0], Spread(3, 2, 4, 1, 5)),
        ([], None),
    ],
    ids=str,
)
def test_spread(values, expected):
    assert spread(values) == expected


def test_in_another_unit():
    assert spread([1.0, 3.0]).times(1e3) == Spread(2000, 1500, 2500, 1000, 3000)


def test_ratios_are_paired():
    """A slow repeat is slow for both, and does not show."""
    assert ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == [2.0, 2.0, 2.0]


def test_an_interrupted_repeat_has_no_ratio():
    assert ratios([2.0, 4.0], [1.0]) == [2.0]


def test_sums_want_every_part():
    assert sums([1.0, 2.0], [10.0, 20.0]) == [11.0, 22.0]
    assert sums([1.0, 2.0], []) == []
