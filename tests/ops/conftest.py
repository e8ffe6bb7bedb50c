"""mmcv's compiled operators, where this environment has them."""

import importlib

import pytest
from ops.both import OURS

from mmorepa.ops import state


@pytest.fixture(scope='session')
def compiled():
    """The compiled module; skips where there is none that loads."""
    if state() != 'compiled':
        pytest.skip('this mmcv has no compiled operators to compare with')
    try:
        return importlib.import_module('mmcv._ext')
    except ImportError as error:
        pytest.skip(f"this mmcv's compiled operators do not load: {error}")


@pytest.fixture
def ours():
    """The operators of mmorepa."""
    return OURS
