"""The file that keeps the records of a study."""

import json

import pytest

from mmorepa.errors import UserError
from mmorepa.lab.comparison.measured_run import Job
from mmorepa.lab.comparison.records import metric_of, pack, read_record, unpack


def record(config, seed, value=1.0, settings='abc'):
    return dict(config=config, seed=seed, settings=settings, iterations=3, metrics=dict(top1=value))


@pytest.fixture
def job(tmp_path):
    return Job('x.py', 'x', 1, str(tmp_path / 'x' / 'seed1'), settings='abc')


def test_what_is_packed_is_unpacked(tmp_path, job):
    path = tmp_path / 'new' / 'kept.json'
    unpack(path, [job])  # no file, nothing to do
    assert read_record(job) is None
    pack(path, [record('x', 1), record('y', 1)])
    unpack(path, [job])
    assert read_record(job) == record('x', 1)
    assert not (tmp_path / 'y').exists()


def test_a_file_grows_sorted_a_line_a_run(tmp_path):
    path = tmp_path / 'kept.json'
    for one in (record('y', 0), record('x', 10), record('x', 2), record('x', 10, value=2.0)):
        pack(path, [one])
    kept = json.loads(path.read_text())
    assert [(one['config'], one['seed']) for one in kept] == [('x', 2), ('x', 10), ('y', 0)]
    assert kept[1]['metrics'] == dict(top1=2.0)
    assert len(path.read_text().splitlines()) == 2 + 3


def test_the_run_of_this_place_comes_first(tmp_path, job):
    pack(tmp_path / 'kept.json', [record('x', 1, value=2.0)])
    pack(tmp_path / 'other.json', [record('x', 1, value=3.0)])
    for name in ('kept.json', 'other.json'):
        unpack(tmp_path / name, [job])
    assert read_record(job)['metrics'] == dict(top1=2.0)


def test_other_settings_are_refused_and_kept(tmp_path, job):
    path = tmp_path / 'kept.json'
    pack(path, [record('x', 1, settings='xyz')])
    before = path.read_text()
    for use in (lambda: unpack(path, [job]), lambda: pack(path, [record('x', 1)])):
        with pytest.raises(UserError, match='kept.json has a record of x seed 1 with other set'):
            use()
    assert path.read_text() == before
    assert read_record(job) is None


@pytest.mark.parametrize('content', ['{', '3', '[3]', '{"a": 1}', '[{"config": "x"}]'])
def test_what_is_no_file_of_records_is_kept(tmp_path, job, content):
    path = tmp_path / 'kept.json'
    path.write_text(content)
    for use in (lambda: pack(path, [record('x', 1)]), lambda: unpack(path, [job])):
        with pytest.raises(UserError, match='holds no records of runs: name another file'):
            use()
    assert path.read_text() == content


def test_a_run_is_compared_by_a_single_number():
    one = dict(config='x', metrics=dict(recall=[1.0, 2.0], top1=1.0))
    assert metric_of([one]) == 'top1'
    with pytest.raises(UserError, match="x has no metric 'recall': choose a --metric from top1"):
        metric_of([one], 'recall')
