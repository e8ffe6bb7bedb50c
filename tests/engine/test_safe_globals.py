"""MMEngine's checkpoints, where torch unpickles tensors and plain values alone."""

import copy
import io
import os

import numpy as np
import pytest
import torch
from engine.small_training import Images, make_runner
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmorepa.checkpoints.files import load_checkpoint, mmengine_loads_weights_only
from mmorepa.errors import UserError


def load(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def saved(value):
    """In the old format, where names stand in plain text."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize('core', [b'core', b'_core'], ids=['NumPy 1', 'NumPy 2'])
@pytest.mark.parametrize('kind', '? b h i l q B H I L Q e f d'.split())
def test_numpy_of_either_major_version(kind, core):
    value = dict(number=np.dtype(kind).type(1), array=np.arange(3).astype(kind))
    here = np.generic.__reduce__(np.int64(1))[0].__module__.encode()
    content = saved(value)
    assert b'c' + here + b'\n' in content
    loaded = load(content.replace(here, b'numpy.' + core + b'.multiarray'))
    assert loaded['number'] == value['number']
    assert loaded['number'].dtype == loaded['array'].dtype == np.dtype(kind)
    assert np.array_equal(loaded['array'], value['array'])


def test_what_was_logged():
    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 2])
    loaded = load(saved(history))
    assert loaded.mean() == history.mean() == 6 / 4
    assert loaded.current() == 3.0


def test_nested_config_of_a_dataset():
    metainfo = dict(classes=('a', 'b'), label_map=ConfigDict({0: 1, 255: ConfigDict(a=2)}))
    loaded = load(saved(metainfo))
    assert loaded == metainfo
    assert type(loaded['label_map']) is ConfigDict


class AnotherGetattr:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_stays_shut_but_for_the_averages():
    with pytest.raises(Exception, match='getattr of .__init__. is not allowed'):
        load(saved(AnotherGetattr()))


class WithMetainfo(Images):
    metainfo = dict(classes=('a', 'b', 'c'), palette=np.eye(3), label_map=ConfigDict({0: 1}))


SCHEDULERS = [
    dict(type='LinearLR', start_factor=0.5, begin=0, end=2, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=2, end=4, by_epoch=False),
]


def runner(folder, optimizer, epochs, **kwargs):
    return make_runner(
        folder,
        WithMetainfo(),
        optim=dict(optimizer=optimizer),
        hooks=[EMAHook(ema_type='ExponentialMovingAverage')],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        param_scheduler=copy.deepcopy(SCHEDULERS),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        **kwargs,
    )


@pytest.fixture
def weights_only(monkeypatch):
    """As torch has it from version 2.6 on, whoever calls torch.load."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(Exception, match='mkdir'):
        torch.load(io.BytesIO(saved(Code('anywhere'))))


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.usefixtures('weights_only')
@pytest.mark.parametrize(
    'by, optimizer',
    [
        ('torch', dict(type='AdamW', lr=0.01)),
        ('mmorepa', dict(type='SGD', lr=0.1, momentum=0.9)),
    ],
    ids=['torch', 'mmorepa'],
)
def test_resumed_training_equals_the_uninterrupted_one(by, optimizer, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    runner(whole, optimizer, epochs=2).train()
    runner(parts, optimizer, epochs=1).train()
    resumed = runner(parts, optimizer, epochs=2, resume=True)
    if by == 'torch':
        resumed.train()
    else:
        with mmengine_loads_weights_only():
            resumed.train()
    whole, parts = (load_checkpoint(folder / 'epoch_2.pth') for folder in (whole, parts))
    assert parts['meta']['epoch'] == 2
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in whole[key].items():
            assert torch.equal(value, parts[key][name]), name
    history = parts['message_hub']['log_scalars']['train/loss']
    assert np.array_equal(
        history.data[0], whole['message_hub']['log_scalars']['train/loss'].data[0]
    )


def test_code_is_refused_on_any_torch(tmp_path):
    """Without the context this torch, or an older one, may run it."""
    sgd = dict(type='SGD', lr=0.1)
    runner(tmp_path / 'a', sgd, epochs=1).train()
    path, ran = tmp_path / 'a' / 'epoch_1.pth', tmp_path / 'ran'
    torch.save({**load_checkpoint(path), 'x': Code(ran)}, path)
    for how in (dict(resume=True), dict(load_from=str(path))):
        with (
            mmengine_loads_weights_only(),
            pytest.raises(UserError, match='epoch_1.pth is not loaded: it holds more than') as info,
        ):
            runner(tmp_path / 'a', sgd, epochs=2, **how).train()
        assert '\n' not in str(info.value)
    assert not ran.exists()


def test_mmengine_has_its_own_loader_back(tmp_path):
    before = dict(CheckpointLoader._schemes)
    with pytest.raises(UserError, match='no checkpoint at'), mmengine_loads_weights_only():
        assert CheckpointLoader._schemes != before
        CheckpointLoader.load_checkpoint(str(tmp_path / 'missing.pth'))
    assert list(CheckpointLoader._schemes.items()) == list(before.items())
