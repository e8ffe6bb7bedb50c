"""Differences between configs, against numbers known otherwise."""

import pytest

from mmorepa.lab.comparison.paired import Difference, digits_of

#: Student's t of 97.5 %, from a printed table.
T = {1: 12.706, 2: 4.303, 4: 2.776}


def difference(*values, time=1.5):
    return Difference('orepa', 'plain', 'top1', list(range(len(values))), list(values), time)


@pytest.mark.parametrize(
    'values, reach',
    [
        ((1.0, 3.0), T[1] * 2**0.5 / 2**0.5),
        ((1.0, 2.0, 3.0), T[2] * 1 / 3**0.5),
        ((1.0, 1.0, 2.0, 3.0, 3.0), T[4] * 1 / 5**0.5),
        ((1.0, 1.0, 1.0), 0),
    ],
    ids=str,
)
def test_interval(values, reach):
    middle = sum(values) / len(values)
    assert difference(*values).interval == pytest.approx((middle - reach, middle + reach), rel=1e-3)


def test_one_pair_has_no_interval():
    assert difference(1.0).interval is None


@pytest.mark.parametrize(
    'values, words',
    [
        ((1.0, 1.1, 1.2), 'orepa is above plain: +1.10 top1 on the mean of 3 pairs'),
        ((-1.0, -1.1, -1.2), 'orepa is below plain: -1.10 top1'),
        ((-1.0, 2.0, 1.0), 'orepa and plain cannot be told apart: +0.67 top1'),
        ((0.0, 0.0), 'orepa and plain cannot be told apart'),
        ((0.0, 0.0), '+0.00 top1 on the mean of 2 pairs of runs, equal differences give no interv'),
        ((0.3, 0.1 + 0.2), 'orepa against plain: +0.30 top1 on the mean of 2 pairs of runs, equal'),
        ((-0.5,) * 3, 'orepa against plain: -0.50 top1 on the mean of 3 pairs of runs, equal di'),
        ((3.0,), 'orepa against plain: +3.00 top1 on the mean of 1 pair of runs, at 1.50 times'),
        ((1.0, 1.1, 1.2), '95 % interval +0.85 to +1.35, at 1.50 times its training time.'),
    ],
    ids=str,
)
def test_sentence_says_what_the_numbers_support(values, words):
    assert words in difference(*values).sentence


@pytest.mark.parametrize(
    'values, shown', [((91.2, 0.5), '+0.00 mAP on'), ((0.345, 0.31), '+0.0023 mAP on')]
)
def test_digits_are_those_of_the_metric(values, shown):
    small = Difference('a', 'b', 'mAP', [0, 1], [0.0021, 0.0025], 1.5, digits_of(values))
    assert shown in small.sentence
