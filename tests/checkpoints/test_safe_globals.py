"""MMEngine's checkpoints, where torch unpickles tensors and plain values alone."""

import contextlib
import copy
import functools
import io
import os
import threading
from collections import OrderedDict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from engine.small_training import Images, make_runner
from mmorepa.checkpoints import files
from mmorepa.checkpoints.files import load_checkpoint, mmengine_loads_weights_only
from mmorepa.checkpoints.safe_globals import SAFE_GLOBALS, safe_globals
from mmorepa.errors import UserError


def load(content):
    with safe_globals():
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


@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_state_of_one_cycle(anneal):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    state = OneCycleLR(optimizer, 0.1, total_steps=9, anneal_strategy=anneal).state_dict()
    loaded = load(saved(state))
    assert loaded.pop('anneal_func')(1.0, 3.0, 0.5) == pytest.approx(2.0)
    assert loaded.items() <= state.items()


class AnotherGetattr:
    def __init__(self, owner):
        self.owner = owner

    def __reduce__(self):
        return getattr, (self.owner, '__init__')


@pytest.mark.parametrize('owner', [HistoryBuffer, OneCycleParamScheduler, OrderedDict])
def test_getattr_stays_shut_but_for_the_methods_named(owner):
    with pytest.raises(Exception, match='getattr of .__init__. is not allowed'):
        load(saved(AnotherGetattr(owner)))


def refused():
    """Whether torch by itself refuses what MMEngine writes."""
    try:
        torch.load(io.BytesIO(saved(HistoryBuffer())), weights_only=True)
    except Exception as error:
        return 'HistoryBuffer' in str(error)
    return False


class TestAllowed:
    @pytest.fixture(autouse=True)
    def none(self):
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        yield
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    def test_in_the_block_alone(self):
        assert refused()
        with safe_globals():
            assert not refused()
        assert refused()
        assert torch.serialization.get_safe_globals() == []

    def test_not_after_an_error(self):
        with pytest.raises(KeyError), safe_globals():
            raise KeyError
        assert torch.serialization.get_safe_globals() == []
        # Nor does the next one wait for the lock.
        with safe_globals():
            assert not refused()

    def test_while_a_file_is_read_alone(self, tmp_path):
        path = tmp_path / 'a.pth'
        torch.save(dict(state_dict=dict(a=torch.ones(1)), log=HistoryBuffer([1.0], [1])), path)
        assert load_checkpoint(path)['log'].mean() == 1
        assert torch.serialization.get_safe_globals() == []
        path.write_bytes(saved(Code(tmp_path / 'ran')))
        with pytest.raises(UserError, match='more than tensors'):
            load_checkpoint(path)
        assert torch.serialization.get_safe_globals() == []

    def test_what_the_user_allows_stays(self):
        """One of the names here, and one that is not."""
        torch.serialization.add_safe_globals([HistoryBuffer, Code])
        with safe_globals():
            assert set(SAFE_GLOBALS) < set(torch.serialization.get_safe_globals())
        assert set(torch.serialization.get_safe_globals()) == {HistoryBuffer, Code}

    def test_of_two_threads_the_second_still_reads(self, monkeypatch):
        """Where the second began while the first was reading, and ends after it."""
        content, torch_load, found = saved(HistoryBuffer([1.0], [1])), torch.load, []
        both_read = threading.Event()

        def read():
            found.append(files.unpickle('a.pth').mean())

        first, second = threading.Thread(target=read), threading.Thread(target=read)

        def load(*args, **kwargs):
            if threading.current_thread() is first:
                second.start()
                both_read.wait(0.5)
            else:
                both_read.set()
                first.join(60)
            return torch_load(*args, **kwargs)

        monkeypatch.setattr(files, '_content', lambda path: (content, path))
        monkeypatch.setattr(torch.serialization, 'load', load)
        first.start()
        first.join(60)
        second.join(60)
        assert found == [1, 1]
        assert torch.serialization.get_safe_globals() == []


class WithMetainfo(Images):
    metainfo = dict(classes=('a', 'b', 'c'), palette=np.eye(3), label_map=ConfigDict({0: 1}))


SCHEDULERS = [
    dict(type='LinearLR', start_factor=0.5, begin=0, end=2, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=2, end=4, by_epoch=False),
]


def runner(folder, optimizer, epochs, hooks=(), **kwargs):
    return make_runner(
        folder,
        WithMetainfo(),
        optim=dict(optimizer=optimizer),
        hooks=[EMAHook(ema_type='ExponentialMovingAverage'), *hooks],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        param_scheduler=copy.deepcopy(SCHEDULERS),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        **kwargs,
    )


HOOK = dict(type='mmorepa.SafeResumeHook')


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
        ('hook', dict(type='AdamW', lr=0.01)),
        ('block', dict(type='SGD', lr=0.1, momentum=0.9)),
    ],
    ids=['hook', 'block'],
)
def test_resumed_training_equals_the_uninterrupted_one(by, optimizer, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    runner(whole, optimizer, epochs=2).train()
    runner(parts, optimizer, epochs=1).train()
    if by == 'hook':
        runner(parts, optimizer, epochs=2, hooks=[HOOK], resume=True).train()
    else:
        with mmengine_loads_weights_only():
            runner(parts, optimizer, epochs=2, resume=True).train()
    whole, parts = (load_checkpoint(folder / 'epoch_2.pth') for folder in (whole, parts))
    assert parts['meta']['epoch'] == 2
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in whole[key].items():
            assert torch.equal(value, parts[key][name]), name
    history = parts['message_hub']['log_scalars']['train/loss']
    assert np.array_equal(
        history.data[0], whole['message_hub']['log_scalars']['train/loss'].data[0]
    )


@pytest.mark.usefixtures('weights_only')
def test_without_the_hook_torch_refuses(tmp_path):
    sgd = dict(type='SGD', lr=0.1)
    runner(tmp_path / 'a', sgd, epochs=1).train()
    with pytest.raises(Exception, match='Weights ?only load failed'):
        runner(tmp_path / 'a', sgd, epochs=2, resume=True).train()


class AfterLoading(Hook):
    """Notes MMEngine's loader, and the runner's, before the first iteration."""

    def before_train(self, runner):
        self.loader = CheckpointLoader._schemes['']
        self.replaced = 'load_or_resume' in vars(runner)


def test_the_hook_leaves_nothing_changed(tmp_path):
    sgd, note = dict(type='SGD', lr=0.1), AfterLoading()
    before, allowed = dict(CheckpointLoader._schemes), set(torch.serialization.get_safe_globals())
    runner(tmp_path / 'a', sgd, epochs=1, hooks=[HOOK, note]).train()
    assert (note.loader, note.replaced) == (before[''], False)
    resumed = runner(tmp_path / 'a', sgd, epochs=2, hooks=[HOOK, note], resume=True)
    resumed.train()
    assert (resumed.epoch, note.loader, note.replaced) == (2, before[''], False)
    missing = str(tmp_path / 'missing.pth')
    failing = runner(tmp_path / 'a', sgd, epochs=2, hooks=[HOOK], load_from=missing)
    with pytest.raises(UserError, match='no checkpoint at'):
        failing.train()
    assert list(CheckpointLoader._schemes.items()) == list(before.items())
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.fixture
def mmengine_unpickles_all(monkeypatch):
    """As MMEngine 0.11 and the onedl fork have it: torch.load runs what a file says."""
    load = torch.load

    def unpickle_all(*args, **options):
        return load(*args, **{**options, 'weights_only': False})

    monkeypatch.setattr(torch, 'load', unpickle_all)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of ``tmp_path``; what is fetched from it goes to a cache of the test's own."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'cache'))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.mark.usefixtures('mmengine_unpickles_all')
def test_code_is_refused_on_any_torch_by_any_mmengine_on_every_route(tmp_path, served):
    """Without the block or the hook this torch, or an older one, may run it."""
    sgd = dict(type='SGD', lr=0.1)
    runner(tmp_path / 'a', sgd, epochs=1).train()
    path, ran = tmp_path / 'a' / 'epoch_1.pth', tmp_path / 'ran'
    torch.save({**load_checkpoint(path), 'x': Code(ran)}, path)
    block, nothing = mmengine_loads_weights_only, contextlib.nullcontext
    url = f'{served}/a/epoch_1.pth'
    routes = (
        dict(resume=True),
        dict(resume=True, load_from=str(path)),
        dict(load_from=str(path)),
        dict(resume=True, load_from=url),
        dict(load_from=url),
    )
    for context, hooks in ((block, []), (nothing, [HOOK])):
        for route in routes:
            with (
                context(),
                pytest.raises(UserError, match='epoch_1.pth is not loaded: it holds more') as info,
            ):
                runner(tmp_path / 'a', sgd, epochs=2, hooks=hooks, **route).train()
            assert '\n' not in str(info.value)
            assert not ran.exists()
    # The file is one that would have run.
    runner(tmp_path / 'a', sgd, epochs=1, load_from=url).train()
    assert ran.exists()


@pytest.mark.usefixtures('mmengine_unpickles_all')
def test_it_resumes_from_a_url(tmp_path, served):
    sgd = dict(type='SGD', lr=0.1)
    runner(tmp_path / 'a', sgd, epochs=1).train()
    url = f'{served}/a/epoch_1.pth'
    resumed = runner(tmp_path / 'b', sgd, epochs=2, hooks=[HOOK], resume=True, load_from=url)
    resumed.train()
    assert resumed.epoch == 2


def test_mmengine_has_its_own_loader_back(tmp_path):
    before = dict(CheckpointLoader._schemes)
    with pytest.raises(UserError, match='no checkpoint at'), mmengine_loads_weights_only():
        assert CheckpointLoader._schemes != before
        CheckpointLoader.load_checkpoint(str(tmp_path / 'missing.pth'))
    assert list(CheckpointLoader._schemes.items()) == list(before.items())
