"""What can be asked for, and one line for what cannot."""

import pytest

from mmorepa.deploy.quantization import Settings
from mmorepa.errors import UserError


@pytest.mark.parametrize(
    'arguments, method',
    [
        (dict(), 'minmax'),
        (dict(mode='dynamic'), None),
        (dict(method='entropy'), 'entropy'),
        (dict(backend='torch'), 'histogram'),
        (dict(backend='torch', method='minmax'), 'minmax'),
    ],
)
def test_methods_by_default(arguments, method):
    assert Settings(**arguments).method == method


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(backend='tensorrt'), "'tensorrt' is not known: choose onnxruntime or torch"),
        (dict(mode='half'), "'half' is not known: choose static or dynamic"),
        (dict(backend='torch', mode='dynamic'), 'no convolutions: choose mode static'),
        (dict(backend='torch', reduce_range=True), 'reduce_range is of backend onnxruntime'),
        (dict(backend='torch', method='entropy'), "no method 'entropy': choose histogram or"),
        (dict(method='histogram'), "no method 'histogram': choose minmax or entropy or percentile"),
        (dict(mode='dynamic', method='minmax'), "'minmax' is of mode static: leave it out"),
    ],
)
def test_what_does_not_exist_gets_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        Settings(**arguments)
    assert '\n' not in str(raised.value)
