"""A library's own backbone that starts from a checkpoint: all of it arrives, or it is an error."""

import pytest
import torch
from mmengine.registry import MODELS

from engine.small_training import BACKBONE, make_runner
from mmorepa import squeeze
from mmorepa.engine.init_hook import InitHook
from mmorepa.errors import UserError
from support import make_trained_like

PLAIN = dict(type='mmpretrain.ResNet')


def backbone(**options):
    torch.manual_seed(0)
    return make_trained_like(MODELS.build({**BACKBONE, **options}))


def started(tmp_path, state_dict):
    """The backbone of a training that is about to begin."""
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=state_dict, meta={}), path)
    runner = make_runner(tmp_path / 'work', backbone=PLAIN)
    runner.register_hook(InitHook(str(path)))
    runner.call_hook('before_train')
    return runner.model.backbone


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('build', [lambda: backbone(**PLAIN), lambda: squeeze(backbone())])
def test_it_arrives(build, prefix, tmp_path):
    state_dict = build().state_dict()
    named = {prefix + key: value for key, value in state_dict.items()}
    found = started(tmp_path, named | {'head.fc.weight': torch.zeros(2, 2)}).state_dict()
    assert found.keys() == state_dict.keys()
    assert all(torch.equal(found[key], state_dict[key]) for key in found)


@pytest.mark.parametrize(
    'options', [{}, dict(PLAIN, base_channels=8)], ids=['training form', 'another width']
)
def test_what_does_not_fit_is_an_error(options, tmp_path):
    with pytest.raises(UserError, match='does not fit ResNet') as info:
        started(tmp_path, backbone(**options).state_dict())
    assert '\n' not in str(info.value)


def test_a_resumed_training_goes_on(tmp_path):
    runner = make_runner(tmp_path / 'work', backbone=PLAIN)
    runner.register_hook(InitHook('nowhere.pth'))
    runner.train_loop._iter = 2
    runner.call_hook('before_train')
