"""Checkpoint files: loaded without running code, and saved."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine import fileio
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..errors import UserError, first_line
from ..writing import written_whole
from .foreign import EXPORTED, foreign
from .safe_globals import safe_globals
from .schemes import DEAD, fetched, is_page, url_of
from .state_dict import one_line, unusable


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint onto the CPU, unpickling nothing but tensors and plain values.

    MMEngine's training checkpoints also hold its ``HistoryBuffer`` and NumPy arrays. These are
    allowed by name while the file is read, see :mod:`mmorepa.checkpoints.safe_globals`. The values
    may be infinite or NaN.

    Args:
        path (str | os.PathLike): A file of ``torch.save`` or ``.safetensors``; a URL; a name such
            as ``torchvision://resnet50``; or anything that MMEngine's file client reads.

    Returns:
        dict: What is in the file. It has at least ``state_dict``, dense tensors whose keys have
        lost a leading ``module.``, and ``meta``, a dict. A bare state dict is put under
        ``state_dict``.

    Raises:
        UserError: If there is no such file, it is torn or damaged, it holds code, or it is no
            checkpoint.
    """
    path = str(path)
    checkpoint = unpickle(path)
    if not isinstance(checkpoint, Mapping):
        raise UserError(
            f'{path} holds a {type(checkpoint).__name__}, wanted a dict with a state_dict'
        )
    state_dict = checkpoint.get('state_dict', checkpoint)
    reason = unusable(state_dict)
    if reason:
        raise UserError(f'{path} holds no state_dict of tensors: {_found(checkpoint, reason)}')
    stripped = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    if len(stripped) < len(state_dict):
        raise UserError(f'{path} holds a state_dict with keys that differ by a module. alone')
    if state_dict is checkpoint:
        return dict(state_dict=stripped, meta={})
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    return {**checkpoint, 'state_dict': stripped, 'meta': meta}


def unpickle(path: str, map_location: Any = 'cpu') -> Any:
    """What is in a file of ``torch.save``, unpickling nothing but tensors and plain values.

    Args:
        path (str): See :func:`load_checkpoint`.
        map_location (Any): See ``torch.load``. Defaults to ``'cpu'``.

    Raises:
        UserError: If there is no such file, it is torn or damaged, it holds code, or ``torch.save``
            did not write it.
    """
    content, path = _content(path)
    if path.endswith('.safetensors'):
        return _read_safetensors(content, path)
    return _unpickle(content, path, map_location)


def _unpickle(content: bytes, path: str, map_location: Any) -> Any:
    kind = f'an ONNX graph, {EXPORTED}' if path.endswith('.onnx') else foreign(content)
    if kind:
        raise UserError(f'{path} is not a whole PyTorch checkpoint but {kind}')
    try:
        with safe_globals(), warnings.catch_warnings():
            # Of types in old files; whoever reads a file did not write it.
            warnings.simplefilter('ignore')
            # torch.load, also while that name stands for this function, see _weights_only.
            load = torch.serialization.load
            return load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except Exception as error:  # torn or foreign bytes trip torch's reader in many ways
        refused = re.search(r'GLOBAL (\S+)|(getattr of \S+)', str(error))
        if refused:
            raise UserError(
                f'{path} is not loaded: it holds more than tensors and plain values, '
                f'namely {one_line(refused[1] or refused[2])}; save its state dict alone'
            ) from None
        # torch's own lines go on with how to load it unsafely.
        said = re.search(r'WeightsUnpickler error: (.*)', str(error)) or re.match(
            '(.*)', str(error)
        )
        reason = one_line(f'{type(error).__name__}: {said[1]}')
        raise UserError(f'{path} is not a whole PyTorch checkpoint ({reason})') from None


def _read_safetensors(content: bytes, path: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise UserError(f'{path} wants the package safetensors: pip install safetensors') from None
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f'{path} is not a whole safetensors file ({one_line(error)})') from None


def _content(path: str) -> tuple[bytes, str]:
    """All of a file, and the path where it was found in the end."""
    url = url_of(path)
    if url.startswith(('http://', 'https://')):
        path = str(fetched(url))
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder: wanted a checkpoint file')
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f'{path} is no regular file: wanted a checkpoint file')
    try:
        if not fileio.exists(path):
            raise UserError(f'no checkpoint at {one_line(path, 300)}: check the path')
        return fileio.get(path), path
    except UserError:
        raise
    except KeyError:
        raise UserError(
            f'{path} is nowhere that MMEngine reads files from: wanted a path or a URL'
        ) from None
    except Exception as error:  # of the system, or of any file client
        raise UserError(f'{path} cannot be read: {one_line(first_line(error))}') from None


def _found(checkpoint: Mapping, reason: str) -> str:
    """What a dict without a state dict is, as far as can be told."""
    if {'state', 'param_groups'} <= checkpoint.keys():
        return "it is an optimizer's state"
    inner = [
        key
        for key, value in checkpoint.items()
        if isinstance(value, Mapping) and not unusable(value)
    ]
    if inner:
        return (
            f'its tensors are under {one_line(repr(inner[0]))}; save those alone, or under '
            'state_dict'
        )
    return f'it has {reason}'


def save_checkpoint(checkpoint: dict, path: str | os.PathLike, replace: bool = True) -> None:
    """Write a checkpoint that ``weights_only=True`` loads; whole, or not at all.

    Args:
        checkpoint (dict): Tensors and plain values; numpy values are turned into Python's, what
            else is no plain value into its text.
        path (str | os.PathLike): Where to.
        replace (bool): See :func:`mmorepa.writing.written_whole`. Defaults to True.

    Raises:
        UserError: If the file cannot be written, or values are nested without end.
    """
    try:
        content = _plain(checkpoint)
    except RecursionError:
        raise UserError(f'{path} is not written: the checkpoint nests values too deep') from None
    # A file of Python's: torch's own does not say why it cannot write.
    with written_whole(path, replace) as temporary, open(temporary, 'wb') as file:
        torch.save(content, file)


@contextlib.contextmanager
def mmengine_loads_weights_only() -> Iterator[None]:
    """A context in which MMEngine reads checkpoint files as :func:`unpickle` does, also to resume.

    A file with code is then refused on any torch and by any MMEngine, wherever it is fetched from,
    and a torn or foreign file gets one line. By itself MMEngine leaves this to torch, which
    unpickles everything before version 2.6, and later still does so with files from a URL. MMEngine
    0.11 and the onedl fork always let it unpickle everything. After the context MMEngine has its
    own loaders back.
    """
    before = CheckpointLoader._schemes
    CheckpointLoader._schemes = before.copy()
    for prefix in before:
        CheckpointLoader._schemes[prefix] = _weights_only(before[prefix])
    CheckpointLoader._schemes[''] = load_from_local
    try:
        yield
    finally:
        CheckpointLoader._schemes = before


def load_from_local(filename: str, map_location: Any) -> Any:
    """MMEngine's function of this name, for weights alone; the name is in its log."""
    return unpickle(os.path.expanduser(filename), map_location or 'cpu')


def _weights_only(loader: Callable) -> Callable:
    """A loader of MMEngine's for which ``torch.load`` reads as :func:`unpickle` does."""

    @functools.wraps(loader)
    def load(filename, map_location=None, **options):
        def torch_load(file, map_location=None, **_):
            is_cached = isinstance(file, (str, Path)) and str(file) != filename
            if is_cached and is_page(file):
                os.unlink(file)  # or the next call would find it in the cache
                raise UserError(DEAD.format(filename))
            content = Path(file).read_bytes() if isinstance(file, (str, Path)) else file.read()
            return _unpickle(content, filename, map_location or 'cpu')

        try:
            with mock.patch.object(torch, 'load', torch_load):
                return loader(filename, map_location=map_location, **options)
        except OSError as error:  # of the network; it does not name the file
            raise UserError(f'{filename} cannot be read: {one_line(first_line(error))}') from None

    return load


def _plain(value):
    if value is None or isinstance(value, (bool, int, float, str, bytes, Tensor)):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, (list, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
