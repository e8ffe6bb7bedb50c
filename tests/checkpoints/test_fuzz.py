"""Whatever a file holds, a loader reads it or says why not in one line, and runs nothing of it."""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import nn

import mmorepa.pretrain  # noqa: F401
from mmorepa import squeeze
from mmorepa.checkpoints import load_any_form, load_checkpoint, read_official
from mmorepa.checkpoints.conversion import convert
from mmorepa.checkpoints.files import mmengine_loads_weights_only, save_checkpoint
from mmorepa.checkpoints.official.import_export import export_official, import_official
from mmorepa.convs.finite import first_fault
from mmorepa.engine.run import test as run_test
from mmorepa.errors import UserError
from support import ROOT, make_trained_like

CONFIGS = ROOT / 'configs' / 'imagenet'
STATE = OrderedDict(weight=torch.arange(300.0), count=torch.tensor(3))
#: One deterministic run of Hypothesis, with enough examples to reach every part of a small file.
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def saved(value, legacy=False):
    """The bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


ZIP, LEGACY = (
    saved(dict(state_dict=STATE, meta=dict(epoch=3, classes=('a', 'b'))), legacy)
    for legacy in (False, True)
)


@contextlib.contextmanager
def refused(folder, message=''):
    """One line, and every file in the folder is as it was."""
    before = contents(folder)
    with pytest.raises(UserError, match=message) as info:
        yield
    assert '\n' not in str(info.value)
    assert len(str(info.value)) < 600
    assert contents(folder) == before


def contents(folder):
    return {
        path.name: path.read_bytes() if path.is_file() else path.lstat().st_mode
        for path in folder.rglob('*')
    }


# Files.


class Call:
    """Pickles to the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class State:
    """Pickles to an object with a state to be set."""

    def __init__(self, kind, state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        return self.kind, (), self.state


class Writes(nn.Module):
    """Runs when TorchScript loads it: it saves a tensor."""

    path: str

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.path

    @torch.jit.export
    def __setstate__(self, path: str):
        self.training = False
        self.path = path
        torch.save(torch.zeros(1), path)


CODE = {
    'os.system': lambda ran: Call(os.system, f'touch {ran}'),
    'eval': lambda ran: Call(eval, f'open({str(ran)!r}, "w")'),
    'exec': lambda ran: Call(exec, f'open({str(ran)!r}, "w")'),
    'subprocess': lambda ran: Call(subprocess.call, ['touch', str(ran)]),
    'open': lambda ran: Call(open, str(ran), 'w'),
    'torch.save': lambda ran: Call(torch.save, [1], str(ran)),
    'torch.load': lambda ran: Call(torch.load, str(ran)),
    'torch.from_file': lambda ran: Call(torch.from_file, str(ran), True, 8),
    'torch.hub.load': lambda ran: Call(torch.hub.load, str(ran.parent), 'x', 'local'),
    'numpy.memmap': lambda ran: Call(np.memmap, str(ran), 'u1', 'w+', 0, (8,)),
    'numpy.save': lambda ran: Call(np.save, str(ran), [1]),
    'getattr': lambda ran: Call(getattr, HistoryBuffer, 'register_statistics'),
    'partial': lambda ran: Call(partial(os.mkdir, str(ran))),
    'state': lambda ran: State(Writes, dict(path=str(ran))),
    'in an argument': lambda ran: Call(OrderedDict, [('a', Call(os.mkdir, str(ran)))]),
    'in a history': lambda ran: State(HistoryBuffer, dict(x=Call(os.mkdir, str(ran)))),
    'in a config': lambda ran: Call(ConfigDict, dict(x=Call(os.mkdir, str(ran)))),
}


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('code', CODE)
def test_pickled_code_does_not_run(code, legacy, tmp_path):
    ran, path = tmp_path / 'ran', tmp_path / 'a.pth'
    path.write_bytes(saved(dict(state_dict=STATE, x=CODE[code](ran)), legacy))
    with refused(tmp_path, 'a.pth is not (loaded|a whole)'):
        load_checkpoint(path)
    assert not ran.exists()


def test_torchscript_does_not_run(tmp_path):
    """The pinned torch would run it, even where weights alone are asked for."""
    ran, path = tmp_path / 'ran', tmp_path / 'a.pth'
    torch.jit.script(Writes(str(ran))).save(path)
    ran.unlink(missing_ok=True)
    with refused(tmp_path, 'but a TorchScript archive'):
        load_checkpoint(path)
    assert not ran.exists()
    torch.jit.load(path)
    assert ran.exists()


def archive(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(f'a/{name.replace("_", ".")}', content)
    return stream.getvalue()


def bomb():
    """A checkpoint whose tensor is a thousand times as large as the file."""
    stream = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved(dict(state_dict=dict(a=torch.zeros(1 << 20))))))
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    return stream.getvalue()


def tar():
    """What torch before version 0.2 wrote has these three files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as target:
        for name in ('storages', 'tensors', 'pickle'):
            content = pickle.dumps(0)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def larger_than_its_storage():
    """The pickle says 300 values; here it says 2 ** 31 - 1."""
    stream = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(ZIP))
    with zipfile.ZipFile(stream, 'w') as target:
        for info in source.infolist():
            number = struct.pack('<H', 300)
            content = source.read(info)
            if info.filename.endswith('data.pkl'):
                assert b'M' + number in content
                content = content.replace(b'M' + number, b'J' + struct.pack('<i', 2**31 - 1))
            target.writestr(info.filename, content)
    return stream.getvalue()


SAFETENSORS = json.dumps(dict(a=dict(dtype='F32', shape=[1], data_offsets=[0, 4]))).encode()
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'

FILES = {
    'empty': (b'', 'an empty file'),
    'web page': (b'\n<!DOCTYPE html><html>not found</html>', 'a web page; the download went'),
    'XML': (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'an XML text'),
    'LFS pointer': (LFS, 'a Git LFS pointer; run `git lfs pull`'),
    'text': ('404: not found, fran\u00e7ais'.encode(), 'a text file'),
    'JSON': (b'{"message": "Not Found"}', 'a text file'),
    'text pickle': (pickle.dumps(Call(os.mkdir, 'ran'), protocol=0), 'a text file'),
    'safetensors': (
        struct.pack('<Q', len(SAFETENSORS)) + SAFETENSORS + bytes(4),
        'a safetensors file; let its name end in .safetensors',
    ),
    'gzip': (b'\x1f\x8b\x08\x00' + bytes(60), 'a gzip file; unpack it'),
    'HDF5': (b'\x89HDF\r\n\x1a\n' + bytes(60), 'an HDF5 file'),
    'NumPy': (b'\x93NUMPY\x01\x00', 'a NumPy array'),
    'tar': (tar(), 'a tar archive'),
    'another zip': (archive(weights_npy=b'123'), 'a zip archive of something else'),
    'zip bomb': (bomb(), r'unpacks to \d+ bytes from \d+'),
    'flipped value': (flipped(ZIP, ZIP.index(STATE['weight'].numpy().tobytes()) + 800), 'damaged'),
    'half': (ZIP[: len(ZIP) // 2], 'a zip archive that is torn'),
    'half, legacy': (LEGACY[: len(LEGACY) // 2], 'not a whole PyTorch checkpoint'),
    'larger than it is': (larger_than_its_storage(), 'damaged in data/0, which is said to have'),
    'pickle': (pickle.dumps(dict(a=1)), 'not a whole PyTorch checkpoint'),
    'pickled code': (pickle.dumps(Call(os.mkdir, 'ran')), 'not loaded|not a whole'),
    'zeros': (bytes(5000), 'not a whole PyTorch checkpoint'),
}

VALUES = {
    'list': ([1, 2], 'holds a list, wanted a dict'),
    'number': (3, 'holds a int, wanted a dict'),
    'None': (None, 'holds a NoneType'),
    'tensor': (torch.zeros(2), 'holds a Tensor'),
    'empty dict': ({}, 'no state_dict of tensors: it has no tensors'),
    'no tensors': (dict(a=1), 'it has a int under a, which is no tensor'),
    'state_dict that is a list': (
        dict(state_dict=[torch.zeros(1)]),
        'it has a list in the place of a state_dict',
    ),
    'state_dict that is None': (dict(state_dict=None), 'it has a NoneType in the place'),
    'state_dict that is a tensor': (dict(state_dict=torch.zeros(1)), 'it has a Tensor in'),
    'numbers for names': (
        dict(state_dict={0: torch.zeros(1)}),
        'it has the key 0, which is no name',
    ),
    'names of several lines': (
        dict(state_dict={('a\nb', 'c' * 200): torch.zeros(1)}),
        r"it has the key \('a",
    ),
    'nested': (
        dict(state_dict=dict(backbone=dict(weight=torch.zeros(1)))),
        'it has a dict under backbone, which is no tensor',
    ),
    'numpy': (
        dict(state_dict=dict(a=np.zeros(3))),
        'it has a ndarray under a, which is no tensor',
    ),
    'optimizer': (
        torch.optim.Adam([nn.Parameter(torch.zeros(3))]).state_dict(),
        "it is an optimizer's state",
    ),
    'training state without weights': (dict(optimizer=dict(), epoch=3), 'no state_dict of tensors'),
    'another library': (
        dict(model=STATE, optimizer=dict(state={}, param_groups=[]), args=dict(lr=1)),
        "its tensors are under 'model'; save those alone",
    ),
    'sparse': (
        dict(state_dict=dict(a=torch.eye(3).to_sparse())),
        'it has a sparse tensor under a, wanted a dense one',
    ),
    'CSR': (dict(state_dict=dict(a=torch.eye(3).to_sparse_csr())), 'a sparse tensor under a'),
    'quantized': (
        dict(state_dict=dict(a=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))),
        'it has a quantized tensor under a',
    ),
    'without data': (
        dict(state_dict=dict(a=torch.empty(3, device='meta'))),
        'it has a tensor without data under a',
    ),
    'module. twice': (
        dict(state_dict={'a': torch.zeros(1), 'module.a': torch.ones(1)}),
        r'keys that differ by a module\. alone',
    ),
}


@pytest.fixture(scope='module')
def readers():
    """Everything that reads a checkpoint file: by name a function of a path."""
    with torch.random.fork_rng():
        backbone = MODELS.build(dict(type='mmpretrain.OREPAResNet', **NARROW))

    def init_cfg(path):
        model = copy.copy(backbone)
        model.init_cfg = dict(type='Pretrained', checkpoint=str(path))
        model.init_weights()

    def in_mmengine(path):
        with mmengine_loads_weights_only():
            checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
        # MMEngine goes on with the state dict, of which it says what is wrong itself.
        load_any_form(nn.Identity(), checkpoint.get('state_dict', checkpoint), str(path))

    def out(path):
        return next(folder for folder in path.parents if folder.is_dir()) / 'out.pth'

    return dict(
        load_checkpoint=load_checkpoint,
        read_official=read_official,
        init_cfg=init_cfg,
        mmengine=in_mmengine,
        test=lambda path: run_test(ConfigLike(), path),
        convert=lambda path: convert(ConfigLike(), path, out(path)),
        import_official=lambda path: import_official(path, out(path), CONFIGS),
        export_official=lambda path: export_official(path, out(path)),
    )


NARROW = dict(depth=18, base_channels=4, stem_channels=4)
READERS = (
    'load_checkpoint',
    'read_official',
    'init_cfg',
    'mmengine',
    'test',
    'convert',
    'import_official',
    'export_official',
)


class ConfigLike(dict):
    """A config of which nothing is built: the checkpoint is read first."""

    filename = None
    model = dict(type='Nothing')


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('kind', FILES)
def test_files_that_are_no_checkpoint(kind, reader, readers, tmp_path):
    content, message = FILES[kind]
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with refused(tmp_path, message):
        readers[reader](path)
    assert not Path('ran').exists()


@pytest.mark.parametrize('kind', VALUES)
def test_checkpoints_of_something_else(kind, tmp_path):
    value, message = VALUES[kind]
    path = tmp_path / 'a.pth'
    torch.save(value, path)
    with refused(tmp_path, message):
        load_checkpoint(path)
    with refused(tmp_path):
        read_official(path)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize(
    'make, message',
    [
        (lambda folder: folder / 'missing.pth', 'no (pretraining )?checkpoint at'),
        (lambda folder: folder / 'text' / 'a.pth', 'no (pretraining )?checkpoint at'),
        (lambda folder: folder, 'is a folder'),
        (lambda folder: Path('/dev/zero'), 'no regular file'),
        (lambda folder: folder / 'pipe', 'no regular file'),
        (lambda folder: folder / 'loop', 'no (pretraining )?checkpoint at'),
        (lambda folder: folder / ('a' * 300), 'no (pretraining )?checkpoint at'),
    ],
    ids=['missing', 'below a file', 'folder', 'device', 'pipe', 'loop', 'long name'],
)
def test_what_is_no_file(make, message, reader, readers, tmp_path):
    inner = tmp_path / 'inner'
    inner.mkdir()
    (inner / 'text').write_text('a')
    (inner / 'loop').symlink_to(inner / 'loop')
    os.mkfifo(inner / 'pipe')
    path = make(inner)
    if reader == 'mmengine':
        message = f'{message}|can not be found'
    with refused(inner, message):
        readers[reader](path)


@pytest.mark.parametrize(
    'error', [PermissionError(13, 'Permission denied'), OSError(5, 'Input/output error')], ids=str
)
def test_a_file_that_cannot_be_read(error, tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    path.write_bytes(ZIP)

    def fail(*args):
        raise error

    monkeypatch.setattr('mmengine.fileio.get', fail)
    with refused(tmp_path, f'a.pth cannot be read: .*{error.strerror}'):
        load_checkpoint(path)


@pytest.mark.parametrize(
    'path', ['http://127.0.0.1:9/a.pth', 'nowhere://a.pth', 's3://bucket/a.pth', '\0', '']
)
def test_addresses_that_lead_nowhere(path, tmp_path):
    for load in (load_checkpoint, read_official):
        with refused(tmp_path):
            load(path)


# Any bytes.


def same(checkpoint):
    state_dict = checkpoint['state_dict']
    return list(state_dict) == list(STATE) and all(
        torch.equal(state_dict[key], STATE[key]) for key in STATE
    )


@pytest.mark.parametrize('content', [ZIP, LEGACY], ids=['zip', 'legacy'])
def test_cut_off_anywhere(content, tmp_path):
    path = tmp_path / 'a.pth'

    @FUZZ
    @given(st.integers(0, len(content) - 1))
    def check(length):
        path.write_bytes(content[:length])
        with refused(tmp_path, 'a.pth'):
            load_checkpoint(path)

    check()


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4)


@pytest.mark.parametrize('content', [ZIP, LEGACY], ids=['zip', 'legacy'])
def test_bytes_changed_anywhere(content, tmp_path):
    """Checksums in zip files tell of every change; the old format has none."""
    path = tmp_path / 'a.pth'

    @FUZZ
    @given(CHANGES)
    def check(changes):
        changed = bytearray(content)
        for position, difference in changes:
            changed[position % len(content)] ^= difference
        path.write_bytes(changed)
        try:
            checkpoint = load_checkpoint(path)
        except UserError as error:
            assert '\n' not in str(error)
        else:
            assert content is LEGACY or same(checkpoint)

    check()


def test_pickles_changed_under_a_right_checksum(tmp_path):
    path = tmp_path / 'a.pth'
    source = zipfile.ZipFile(io.BytesIO(ZIP))

    @FUZZ
    @given(CHANGES)
    def check(changes):
        with zipfile.ZipFile(path, 'w') as target:
            for info in source.infolist():
                content = bytearray(source.read(info))
                if info.filename.endswith('data.pkl'):
                    for position, difference in changes:
                        content[position % len(content)] ^= difference
                target.writestr(info.filename, bytes(content))
        with contextlib.suppress(UserError):
            assert all(isinstance(key, str) for key in load_checkpoint(path)['state_dict'])

    check()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from([torch.zeros(()), torch.zeros(0, 3), torch.zeros(2, dtype=torch.bool)]),
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(
            st.one_of(
                st.sampled_from(['state_dict', 'meta', 'module.a', 'epoch', 'linear.weight']),
                st.text(max_size=4),
                st.integers(),
                st.none(),
                st.tuples(st.integers()),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


def test_any_values(tmp_path):
    path, again = tmp_path / 'a.pth', tmp_path / 'b.pth'

    @FUZZ
    @given(st.one_of(NESTED, st.fixed_dictionaries(dict(state_dict=NESTED, meta=NESTED))))
    def check(value):
        torch.save(value, path)
        for load in (load_checkpoint, read_official):
            try:
                load(path)
            except UserError as error:
                assert '\n' not in str(error)
        with contextlib.suppress(UserError):
            # What can be read can be written.
            save_checkpoint(load_checkpoint(path), again)

    check()


@given(st.binary(max_size=200))
@FUZZ
def test_any_bytes(tmp_path, content):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with refused(tmp_path, 'a.pth'):
        load_checkpoint(path)


# State dicts.


@pytest.fixture(scope='module')
def trained():
    torch.manual_seed(0)
    return make_trained_like(MODELS.build(dict(type='mmpretrain.OREPAResNet', **NARROW)))


KERNEL = 'layer1.0.conv1.kernel.original.weight'


def shared_memory(state):
    """Every scale of a network a view of one tensor."""
    scales = [key for key in state if key.endswith('scale')]
    base = torch.cat([state[key] for key in scales])
    pieces = base.split([len(state[key]) for key in scales])
    return {**state, **dict(zip(scales, pieces))}


UNUSUAL = {
    'half precision': lambda state: {key: half(value) for key, value in state.items()},
    'bfloat16': lambda state: {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in state.items()
    },
    'double precision': lambda state: {
        key: value.double() if value.is_floating_point() else value for key, value in state.items()
    },
    'float counters': lambda state: {key: value.float() for key, value in state.items()},
    'narrow counters': lambda state: {
        key: value.int() if value.dtype == torch.long else value for key, value in state.items()
    },
    'shared memory': shared_memory,
    'expanded': lambda state: {**state, KERNEL: torch.ones(1).expand(state[KERNEL].shape)},
    'other order in memory': lambda state: {
        key: value.mT.contiguous().mT if value.dim() > 1 else value for key, value in state.items()
    },
    'parameters': lambda state: {
        key: nn.Parameter(value, value.is_floating_point()) for key, value in state.items()
    },
    'other order of keys': lambda state: dict(reversed(state.items())),
    'distributed': lambda state: {f'module.{key}': value for key, value in state.items()},
}


def half(value):
    return value.half() if value.is_floating_point() else value


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('kind', UNUSUAL)
def test_unusual_files_that_are_whole(kind, legacy, trained, tmp_path):
    state = UNUSUAL[kind](dict(trained.state_dict()))
    (tmp_path / 'a.pth').write_bytes(saved(dict(state_dict=state), legacy))
    loaded = load_checkpoint(tmp_path / 'a.pth')['state_dict']
    model = MODELS.build(dict(type='mmpretrain.OREPAResNet', **NARROW))
    load_any_form(model, loaded)
    for key, value in model.state_dict().items():
        expected = state[key if key in state else f'module.{key}']
        assert torch.equal(value, expected.to(value.dtype)), key


def replaced(make):
    return lambda state: {**state, KERNEL: make(state[KERNEL])}


def renamed(state):
    return {key.replace('conv1', 'convolution'): value for key, value in state.items()}


MISFITS = {
    'integers': (replaced(torch.Tensor.int), f'first {KERNEL} with torch.int32 where torch.float'),
    'booleans': (replaced(torch.Tensor.bool), f'first {KERNEL} with torch.bool where'),
    'complex': (replaced(lambda value: value.cfloat()), f'first {KERNEL} with torch.complex64'),
    'without dimensions': (replaced(torch.sum), rf'first {KERNEL} with \(\) where'),
    'empty': (replaced(lambda value: value[:0]), rf'first {KERNEL} with \(0, '),
    'flat': (replaced(torch.flatten), 'shapes differ, first'),
    'huge': (
        replaced(lambda value: torch.ones(1).expand(1 << 30, 1 << 30)),
        r'with \(1073741824, 1073741824\)',
    ),
    'complex counters': (
        lambda state: {**state, 'bn1.num_batches_tracked': torch.zeros((), dtype=torch.cfloat)},
        '1 dtypes differ, first bn1.num_batches_tracked with torch.complex64',
    ),
    'renamed': (renamed, 'keys missing, first .*keys unexpected, first'),
    'in front': (lambda state: {f'model.{k}': v for k, v in state.items()}, 'first model.conv1'),
    'one missing': (
        lambda state: {k: v for k, v in state.items() if k != KERNEL},
        f'1 keys missing, first {KERNEL}',
    ),
    'one more': (lambda state: {**state, 'x\ny': torch.zeros(1)}, 'unexpected, first x y'),
    'NaN': (
        replaced(lambda value: value.index_fill(0, torch.tensor(1), math.nan)),
        r'not finite, first layer1.0.conv1 \(kernel.original.weight, 36 of 144 values\)',
    ),
    'inf': (
        replaced(lambda value: value * math.inf),
        'weights that are not finite, first layer1.0.conv1',
    ),
    'statistics': (
        lambda state: {**state, 'bn1.running_var': torch.full((4,), math.inf)},
        r'first bn1 \(running_var, 4 of 4 values\)',
    ),
    'a number': (lambda state: {**state, KERNEL: 3.0}, 'a float under'),
    'None': (lambda state: {**state, KERNEL: None}, 'a NoneType under'),
    'sparse': (replaced(torch.Tensor.to_sparse), 'a sparse tensor under'),
    'list': (lambda state: list(state.items()), 'a list in the place of a state_dict'),
}


#: A backbone finds its tensors among those of a model around it.
TAKEN_BY_A_BACKBONE = ('in front', 'one more')


@pytest.mark.parametrize('kind', MISFITS)
def test_what_does_not_fit(kind, trained, tmp_path):
    change, message = MISFITS[kind]
    state = change(dict(trained.state_dict()))
    model = MODELS.build(dict(type='mmpretrain.OREPAResNet', **NARROW))
    with refused(tmp_path, message):
        load_any_form(model, state)
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    model = MODELS.build(dict(type='mmpretrain.OREPAResNet', **NARROW))
    model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    if kind in TAKEN_BY_A_BACKBONE:
        model.init_weights()
        loaded = model.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in trained.state_dict().items())
        return
    with refused(tmp_path):
        model.init_weights()


@pytest.mark.parametrize('keep_bn', [False, True])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_conversion_of_weights_that_are_not_finite(
    value, keep_bn, narrow_config, training_checkpoint, tmp_path
):
    checkpoint = torch.load(training_checkpoint, weights_only=True)
    checkpoint['state_dict']['backbone.layer3.0.bn1.bias'][2] = value
    torch.save(checkpoint, training_checkpoint)
    with refused(tmp_path, r'first backbone.layer3.0.bn1 \(bias, 1 of 32 values\)'):
        convert(narrow_config(), training_checkpoint, tmp_path / 'out.pth', keep_bn, probe_size=32)


@pytest.mark.parametrize('meta', [None, [1], {1: 2}, dict(mmorepa=3)], ids=str)
def test_conversion_of_a_checkpoint_with_an_odd_meta(
    meta, narrow_config, training_checkpoint, tmp_path
):
    checkpoint = torch.load(training_checkpoint, weights_only=True)
    torch.save({**checkpoint, 'meta': meta}, training_checkpoint)
    convert(narrow_config(), training_checkpoint, tmp_path / 'out.pth', probe_size=32)
    written = torch.load(tmp_path / 'out.pth', weights_only=True)['meta']
    assert written['mmorepa']['form'] == 'deploy'


def test_conversion_of_a_meta_without_end(narrow_config, training_checkpoint, tmp_path):
    checkpoint = torch.load(training_checkpoint, weights_only=True)
    checkpoint['meta']['self'] = checkpoint['meta']
    torch.save(checkpoint, training_checkpoint)
    with refused(tmp_path, 'is not written: the checkpoint nests values too deep'):
        convert(narrow_config(), training_checkpoint, tmp_path / 'out.pth', probe_size=32)


@pytest.mark.parametrize('out', ['text/out.pth', 'folder.pth'])
def test_conversion_to_where_no_file_can_be(out, narrow_config, training_checkpoint, tmp_path):
    (tmp_path / 'text').write_text('a')
    (tmp_path / 'folder.pth').mkdir()
    with refused(tmp_path, 'is a file: wanted a folder|is a folder'):
        convert(narrow_config(), training_checkpoint, tmp_path / out, force=True, probe_size=32)


def test_released_names_with_any_shapes(tmp_path):
    """What a network is, is told from shapes; these are of none."""
    names = ['stage0.conv1.conv.weight', 'stage0.conv1.bn.running_var', 'linear.weight']
    names += ['stage0.rbr_dense.conv.weight', 'stage1.0.conv1.weight_orepa_origin', 'stage4.0.x']
    shapes = st.lists(st.sampled_from([0, 1, 3, 64, 1 << 20, 1 << 40]), max_size=5)

    @FUZZ
    @given(st.dictionaries(st.sampled_from(names), shapes, min_size=1))
    def check(found):
        try:
            state = {key: torch.ones(1).expand(shape) for key, shape in found.items()}
        except RuntimeError:  # larger than any tensor can claim to be
            return
        with refused(tmp_path):
            read_official(dict(state_dict=state))

    check()


@pytest.mark.parametrize(
    'value, message',
    [
        (3, 'holds no state_dict of tensors'),
        ({1: torch.zeros(1)}, 'which is no name'),
        ({'linear.weight': None}, 'a NoneType under linear.weight'),
        ({'stage0.conv1.conv.weight': torch.eye(3).to_sparse()}, 'a sparse tensor'),
    ],
    ids=['number', 'key', 'None', 'sparse'],
)
def test_released_state_dicts_that_are_none(value, message, tmp_path):
    with refused(tmp_path, message):
        read_official(dict(state_dict=value))


def test_squeezed_network_that_is_finite_has_no_fault(trained):
    assert first_fault(trained) == first_fault(squeeze(copy.deepcopy(trained))) == ''
