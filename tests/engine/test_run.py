"""Reading a config: what is wrong with it is said on one line."""

import pytest

from mmorepa.engine.run import load_config
from mmorepa.errors import UserError


@pytest.mark.parametrize(
    'text, message',
    [
        ('raise SystemExit(0)', 'ends the process while it is read'),
        ('import sys; sys.exit()', 'ends the process while it is read'),
        ('model = (', 'is no config that can be read'),
        ('a = 1', 'has no model'),
    ],
)
def test_what_is_no_config(text, message, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(UserError, match=message) as info:
        load_config(path)
    assert '\n' not in str(info.value)
