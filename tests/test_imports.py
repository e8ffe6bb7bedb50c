"""Importing the package leaves torch as it was, for whoever else uses it in the process."""

import json
import sys

import pytest

from support import ROOT, run

CODE = """
import json
import sys
import torch
from torch.optim import optimizer

def allowed():
    # By name, without what parts of torch allow when they are imported.
    for it in torch.serialization.get_safe_globals():
        it = it[0] if isinstance(it, tuple) else it
        if it.__module__.split('.')[0] != 'torch':
            yield f'{it.__module__}.{it.__qualname__}'

def state():
    hooks = (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)
    return dict(
        safe_globals=sorted(allowed()),
        optimizer_hooks=[str(hook) for kind in hooks for hook in kind.values()],
    )

before = state()
import mmorepa, mmorepa.pretrain, mmorepa.det, mmorepa.seg, mmorepa.checkpoints
json.dump([before, state()], open(sys.argv[1], 'w'))
"""


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    """What is global in torch, in a fresh process, before and after the imports."""
    path = tmp_path_factory.mktemp('states') / 'states.json'
    run(ROOT, sys.executable, '-W', 'ignore', '-c', CODE, path)
    return json.loads(path.read_text())


def test_safe_globals_are_as_before(states):
    before, after = states
    assert after['safe_globals'] == before['safe_globals']


def test_optimizers_have_no_hook_more(states):
    before, after = states
    assert after['optimizer_hooks'] == before['optimizer_hooks']
