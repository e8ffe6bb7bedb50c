"""The files and the text of a config."""

import math

import numpy as np
import pytest
from mmengine.config import Config

from mmorepa.config_files import bases_of, refuse_objects, text_of
from mmorepa.errors import UserError


def test_bases_in_both_styles(tmp_path):
    """Those that Python imports, and those that are named; each once, without end."""
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'data.py').write_text('b = 2')
    (tmp_path / 'model.py').write_text("_base_ = ['sub/data.py', 'mmpretrain::_base_/x.py']")
    (tmp_path / 'old.py').write_text("_base_ = 'model.py'")
    (tmp_path / 'new.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from .sub.data import *\nc = 3\n'
    )
    names = {
        name: [base.name for base in bases_of(tmp_path / name)] for name in ('old.py', 'new.py')
    }
    assert names == {'old.py': ['model.py', 'data.py'], 'new.py': ['data.py']}
    (tmp_path / 'model.py').write_text("_base_ = 'old.py'")
    assert {base.name for base in bases_of(tmp_path / 'old.py')} == {'old.py', 'model.py'}


def test_every_number_is_read_again(tmp_path):
    fields = dict(a=math.inf, b=[-math.inf, (1.5, math.nan)], c=np.float64(0.5), d=np.int64(3))
    fields['words'] = '<number inf>'
    path = tmp_path / 'config.py'
    path.write_text(text_of(Config(fields)))
    read = Config.fromfile(path)
    assert (read.a, read.b[0], read.c, read.d) == (math.inf, -math.inf, 0.5, 3)
    assert read.words == fields['words']
    assert type(read.b[1]) is tuple and math.isnan(read.b[1][1])
    assert type(read.c) is float and type(read.d) is int


@pytest.mark.parametrize(
    'value, is_laid_out',
    [
        (Config, False),
        (len, False),
        (object(), False),
        (10**5000, False),
        (np.zeros(2), True),
        (range(2), True),
    ],
    ids=['class', 'function', 'object', 'digits', 'array', 'range'],
)
def test_what_no_file_can_hold(value, is_laid_out):
    """MMEngine's own training takes what has a text, readable or not."""
    cfg = Config(dict(model=dict(heads=[1, value])))
    uses = [text_of] if is_laid_out else [text_of, refuse_objects]
    if is_laid_out:
        refuse_objects(cfg)
    for use in uses:
        with pytest.raises(UserError, match='model.heads.1 of the type .*, which no config file'):
            use(cfg)
