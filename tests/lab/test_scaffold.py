"""Where results go, and how numbers are written."""

import json
import math

import pytest

from mmorepa.errors import UserError
from mmorepa.lab import scaffold as output
from mmorepa.lab.drawing import spread_out


class TestFolder:
    @pytest.mark.parametrize('name', ['.', 'new', 'new/below'])
    def test_there_or_not(self, name, tmp_path):
        assert output.check_folder(tmp_path / name) == tmp_path / name
        assert not (tmp_path / 'new').exists()

    @pytest.mark.parametrize('name', ['taken', 'taken/below', 'taken/below/that'])
    def test_a_file(self, name, tmp_path):
        (tmp_path / 'taken').write_text('precious')
        with pytest.raises(UserError, match='taken is a file: wanted a folder') as info:
            output.check_folder(tmp_path / name)
        assert '\n' not in str(info.value)

    def test_of_another(self, tmp_path, monkeypatch):
        monkeypatch.setattr('os.access', lambda path, mode: False)
        with pytest.raises(UserError, match='may not be written to'):
            output.check_folder(tmp_path / 'new')


def test_numbers_that_do_not_exist_are_null(tmp_path):
    content = dict(a=[1.5, math.nan], b=dict(c=(math.inf, 2)), d=None, e='text', f=True)
    output.write_json(content, tmp_path / 'sub' / 'a.json')
    found = json.loads((tmp_path / 'sub' / 'a.json').read_text())
    assert found == dict(a=[1.5, None], b=dict(c=[None, 2]), d=None, e='text', f=True)


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
