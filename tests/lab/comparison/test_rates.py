"""The search for learning rates: what is run, and what is chosen."""

from operator import itemgetter

import pytest

from mmorepa.errors import UserError
from mmorepa.lab.comparison.measured_run import Job
from mmorepa.lab.comparison.rates import RATE, Choice, choose, plan_search


def search(*runs, seeds=(0,)):
    """The jobs of a search of two rates and more, and records: config, rate, values by seed."""
    jobs = [
        Job('', f'{config}/lr{rate}', seed, '', cfg_options={RATE: rate})
        for seed in seeds
        for config, rate, _ in sorted(runs, key=itemgetter(1))
    ]
    records = [
        dict(config=f'{config}/lr{rate}', seed=seed, metrics=dict(top1=value, top5=-value))
        for config, rate, values in runs
        for seed, value in values.items()
    ]
    return jobs, records


def test_every_config_is_tried_with_every_rate(tmp_path):
    paths = [tmp_path / f'{name}.py' for name in ('one', 'two')]
    for path in paths:
        path.write_text('lr = 1\n')
    jobs = plan_search(
        paths, [0.1, 0.05, 0.1], [0, 3], tmp_path, {RATE: 7, 'a': 1}, [('two', {'b': 1})], {'a': 2}
    )
    assert [(job.name, job.seed) for job in jobs] == [
        ('one/lr0.05', 0), ('two/lr0.05', 0), ('one/lr0.05', 3), ('two/lr0.05', 3),
        ('one/lr0.1', 0), ('two/lr0.1', 0), ('one/lr0.1', 3), ('two/lr0.1', 3),
    ]  # fmt: skip
    assert jobs[7].cfg_options == {RATE: 0.1, 'a': 2, 'b': 1}
    assert jobs[7].folder == str(tmp_path / 'two' / 'lr0.1' / 'seed3')
    assert len({job.settings for job in jobs}) == 4


def test_a_rate_keeps_its_digits(tmp_path):
    (tmp_path / 'one.py').write_text('lr = 1\n')
    rates = [2**-10, 2**-10 + 2**-30, 0.1]
    jobs = plan_search([tmp_path / 'one.py'], rates, [0], tmp_path)
    names = [f'one/lr{text}' for text in ('0.0009765625', '0.000976563431323', '0.1')]
    assert [job.name for job in jobs] == names
    records = [dict(config=name, seed=0, metrics=dict(top1=1)) for name in names]
    assert choose(jobs, records) == [Choice('one', dict.fromkeys(rates, 1))]


@pytest.mark.parametrize(
    'values, rate, at_end',
    [
        ({0.1: 90, 0.2: 92, 0.4: 91}, 0.2, ''),
        ({0.1: 90, 0.2: 92}, 0.2, 'highest'),
        ({0.1: 92, 0.2: 92, 0.4: 91}, 0.1, 'lowest'),
        ({0.1: 92}, 0.1, ''),
        ({0.1: 90, 0.2: 92, 0.4: None}, 0.2, ''),
        ({0.1: None, 0.2: 92, 0.4: 91}, 0.2, ''),
    ],
    ids=str,
)
def test_the_best_rate(values, rate, at_end):
    choice = Choice('one', values)
    assert (choice.rate, choice.at_end) == (rate, at_end)


def test_each_config_chooses_for_itself():
    runs = [('a', 0.4, {0: 1}), ('b', 0.4, {0: 3}), ('a', 0.1, {0: 2}), ('b', 0.1, {0: 2})]
    found = choose(*search(*runs))
    assert found == [Choice('a', {0.1: 2, 0.4: 1}), Choice('b', {0.1: 2, 0.4: 3})]
    assert [choice.rate for choice in choose(*search(*runs), 'top5')] == [0.4, 0.1]
    assert [list(choice.values) for choice in found] == [[0.1, 0.4]] * 2


def test_the_mean_of_the_seeds_chooses_and_a_failed_run_rules_out():
    runs = [('a', 0.1, {0: 1, 1: 6}), ('a', 0.2, {0: 4, 1: 4}), ('a', 0.4, {1: 9}), ('a', 0.8, {})]
    found = choose(*search(*runs, seeds=(0, 1)))
    assert found == [Choice('a', {0.1: 3.5, 0.2: 4, 0.4: None, 0.8: None})]


def test_rates_that_failed_other_seeds_are_not_compared():
    runs = [('a', 0.1, {0: 1}), ('a', 0.2, {1: 4}), ('b', 0.1, {0: 1, 1: 2}), ('b', 0.2, {0: 9})]
    assert choose(*search(*runs, seeds=(0, 1))) == [Choice('b', {0.1: 1.5, 0.2: None})]


def test_refuses_a_metric_that_is_not_there():
    with pytest.raises(UserError, match="a/lr0.1 has no metric 'mIoU': .* from top1, top5"):
        choose(*search(('a', 0.1, {0: 1})), 'mIoU')
