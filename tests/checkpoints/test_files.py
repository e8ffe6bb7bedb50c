"""Reading and writing checkpoint files."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mmorepa.checkpoints.files import load_checkpoint, save_checkpoint
from mmorepa.errors import UserError
from support import on_a_full_disk

STATE = OrderedDict(weight=torch.arange(3.0))


def write(path, value):
    torch.save(value, path)
    return path


class TestLoad:
    def test_mmengine_training_checkpoint(self, tmp_path):
        hub = MessageHub.get_instance('test_files')
        for value in (1.0, np.float32(2), 3):
            hub.update_scalar('train/loss', value)
        hub.update_info('epoch', 3)
        path = write(
            tmp_path / 'epoch_3.pth',
            dict(
                meta=dict(epoch=3, seed=np.int64(5)),
                state_dict=STATE,
                message_hub=hub.state_dict(),
                optimizer=dict(state={}, param_groups=[dict(lr=0.1)]),
            ),
        )
        assert b'HistoryBuffer' in path.read_bytes()
        checkpoint = load_checkpoint(path)
        assert checkpoint['meta']['epoch'] == 3
        assert torch.equal(checkpoint['state_dict']['weight'], STATE['weight'])
        history = checkpoint['message_hub']['log_scalars']['train/loss']
        assert isinstance(history, HistoryBuffer)
        assert history.mean() == 2

    def test_bare_state_dict(self, tmp_path):
        path = write(tmp_path / 'bare.pth', STATE)
        assert list(load_checkpoint(path)['state_dict']) == ['weight']

    def test_prefix_of_distributed_training(self, tmp_path):
        state = {'module.a': torch.zeros(1), 'module.b.module.c': torch.ones(1)}
        path = write(tmp_path / 'ddp.pth', dict(state_dict=state))
        assert list(load_checkpoint(path)['state_dict']) == ['a', 'b.module.c']


class Bomb:
    """Pickles to code that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Attribute:
    """Pickles to a getattr that no checkpoint of MMEngine has."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda p: p / 'missing.pth', 'no checkpoint at'),
        (lambda p: write(p / 'a.pth', dict(state_dict=STATE, x=Bomb(p / 'ran'))), 'mkdir'),
        (lambda p: write(p / 'a.pth', dict(state_dict=STATE, x=Attribute())), 'getattr'),
        (lambda p: write(p / 'a.pth', [1, 2]), 'holds a list, wanted a dict'),
        (lambda p: write(p / 'a.pth', dict(state_dict={})), 'no state_dict of tensors'),
        (lambda p: write(p / 'a.pth', dict(a=1)), 'no state_dict of tensors'),
        (lambda p: _text(p / 'a.pth', b'a text'), 'not a whole PyTorch checkpoint'),
        (lambda p: _text(p / 'a.pth', b''), 'not a whole PyTorch checkpoint'),
        (lambda p: _text(p / 'a.pth', pickle.dumps(dict(a=1))), 'a.pth'),
        (lambda p: _torn(p / 'a.pth', 0.5), 'not a whole PyTorch checkpoint'),
        (lambda p: _torn(p / 'a.pth', 0.99), 'not a whole PyTorch checkpoint'),
    ],
    ids=[
        'missing',
        'code',
        'getattr',
        'list',
        'empty state',
        'no tensors',
        'text',
        'empty file',
        'plain pickle',
        'half a file',
        'almost whole',
    ],
)
def test_what_is_refused_gets_one_line_and_runs_nothing(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as info:
        load_checkpoint(path)
    assert '\n' not in str(info.value)
    assert str(path) in str(info.value)
    assert not (tmp_path / 'ran').exists()


def _text(path, content):
    path.write_bytes(content)
    return path


def _torn(path, share):
    content = write(path, dict(state_dict=dict(a=torch.randn(1000)))).read_bytes()
    return _text(path, content[: int(len(content) * share)])


class TestSave:
    def test_is_weights_only(self, tmp_path):
        path = tmp_path / 'new' / 'a.pth'
        meta = dict(
            seed=np.int64(3),
            palette=np.zeros((2, 3)),
            classes=('a', 'b'),
            ids={1, 2},
            path=tmp_path,
            nothing=None,
        )
        save_checkpoint(dict(meta=meta, state_dict=STATE), path)
        loaded = torch.load(path, weights_only=True)
        assert loaded['meta'] == dict(
            seed=3,
            palette=[[0, 0, 0], [0, 0, 0]],
            classes=('a', 'b'),
            ids=[1, 2],
            path=str(tmp_path),
            nothing=None,
        )
        assert torch.equal(loaded['state_dict']['weight'], STATE['weight'])


def test_a_full_disk(tmp_path):
    path = tmp_path / 'a.pth'
    said = on_a_full_disk(lambda: save_checkpoint({'state_dict': {'a': torch.ones(9999)}}, path))
    assert f'{path} cannot be written: File too large' in said
    assert not list(tmp_path.iterdir())
