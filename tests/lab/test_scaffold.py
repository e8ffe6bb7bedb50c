"""What a report prints and writes, and how numbers are written."""

import json
import math
from dataclasses import dataclass

import matplotlib.image
import pytest

from mmorepa.lab import scaffold as output
from mmorepa.lab.drawing import new_figure, spread_out


@dataclass(frozen=True)
class Lengths(output.Report):
    """A report that says no more than it has to."""

    layers: list[str]

    def heading(self):
        return 'lengths'

    def columns(self):
        return [
            output.Column('layer', str, left=True),
            output.Column('length', lambda layer: str(len(layer))),
        ]

    def stands_out(self, row):
        return len(row) > 4

    def summary(self):
        return [f'{len(self.layers)} layers']

    def draw(self):
        figure = new_figure(6, 4)
        figure.subplots().bar(self.layers, list(map(len, self.layers)))
        return figure


class TestReport:
    report = Lengths(['conv1', 'fc'])

    def test_table(self):
        shown = self.report.table()
        assert [column.header for column in shown.columns] == ['layer', 'length']
        assert [list(column.cells) for column in shown.columns] == [['conv1', 'fc'], ['5', '2']]
        assert [column.justify for column in shown.columns] == ['left', 'right']
        assert [row.style for row in shown.rows] == ['bold', None]

    def test_shown(self, capsys):
        self.report.show()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].strip() == 'lengths'
        assert lines[-1] == '2 layers'

    def test_written(self, tmp_path):
        self.report.write_json(tmp_path / 'new' / 'a.json')
        assert json.loads((tmp_path / 'new' / 'a.json').read_text()) == dict(layers=['conv1', 'fc'])
        self.report.write_picture(tmp_path / 'new' / 'a.png')
        assert matplotlib.image.imread(tmp_path / 'new' / 'a.png').shape[1] == 660


def test_markdown_table():
    columns = [output.Column('a|b', str, left=True), output.Column('c', str)]
    wanted = ['| a\\|b | c |', '| --- | --: |', '| 1 | 1 |']
    assert output.markdown_table(columns, [1]) == wanted
    assert output.markdown_table(columns, []) == []


@pytest.mark.parametrize(
    'count, wanted, places',
    [(0, 4, []), (1, 4, [0]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (19, 4, [0, 6, 12, 18])],
)
def test_spread_out(count, wanted, places):
    assert spread_out(count, wanted) == places


@pytest.mark.parametrize(
    'value, digits, text', [(1.2345, 2, '1.23'), (-0.0001, 2, '0.00'), (math.nan, 2, '-')]
)
def test_format_number(value, digits, text):
    assert output.format_number(value, digits) == text


@pytest.mark.parametrize(
    'values, expected', [([1.0, math.nan, 3.0], 2.0), ([math.nan], math.nan), ([], math.nan)]
)
def test_mean_of(values, expected):
    assert output.mean_of(values) == pytest.approx(expected, nan_ok=True)
