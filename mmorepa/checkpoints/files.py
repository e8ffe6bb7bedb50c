"""Checkpoint files: loaded without running code, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine import fileio
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..errors import UserError


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint onto the CPU, unpickling nothing but tensors and plain values.

    MMEngine's training checkpoints hold its ``HistoryBuffer`` and numpy arrays as well; these are
    allowed by name.

    Args:
        path (str | os.PathLike): A file, or anything MMEngine's file client reads.

    Returns:
        dict: With at least ``state_dict``, whose keys have lost a ``module.`` in front. A file
        that is a bare state dict is put under that key.

    Raises:
        UserError: If there is no such file, it is torn, it holds code, or it is no checkpoint.
    """
    path = str(path)
    if not fileio.exists(path):
        raise UserError(f'no checkpoint at {path}: check the path')
    try:
        with _allowed_globals():
            checkpoint = torch.load(
                io.BytesIO(fileio.get(path)), map_location='cpu', weights_only=True
            )
    except Exception as error:  # torn or foreign bytes trip torch's reader in many ways
        refused = re.search(r'GLOBAL (\S+)|(getattr of \S+)', str(error))
        if refused:
            raise UserError(
                f'{path} is not loaded: it holds more than tensors and plain values, '
                f'namely {refused[1] or refused[2]}; save its state dict alone'
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'{path} is not a whole PyTorch checkpoint ({reason})') from None
    if not isinstance(checkpoint, Mapping):
        raise UserError(
            f'{path} holds a {type(checkpoint).__name__}, wanted a dict with a state_dict'
        )
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    state_dict = checkpoint['state_dict']
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise UserError(f'{path} holds no state_dict of tensors')
    state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    return {**checkpoint, 'state_dict': state_dict}


def save_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint that ``weights_only=True`` loads; whole, or not at all.

    Args:
        checkpoint (dict): Tensors and plain values; numpy values are turned into Python's, what
            else is no plain value into its text.
        path (str | os.PathLike): Where to. An existing file is replaced.
    """
    with written_whole(path) as temporary:
        torch.save(_plain(checkpoint), temporary)


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file in the folder of ``path``, renamed to it if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's file is private; give it the permissions a new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _history_method(owner: type, name: str):
    """Stands in for ``getattr`` while unpickling; gives MMEngine's four averages, nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed')


# The unpickler looks an allowed function up by the name under which the file asks for it.
_history_method.__module__ = 'builtins'
_history_method.__name__ = _history_method.__qualname__ = 'getattr'


def _allowed_globals():
    # The number types of numpy arrays are classes of their own since numpy 1.25.
    dtypes = [type(np.dtype(kind)) for kind in '?bhilqBHILQefd']
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    return torch.serialization.safe_globals(
        [
            HistoryBuffer,
            _history_method,
            np.ndarray,
            np.dtype,
            multiarray._reconstruct,
            multiarray.scalar,
            *dtypes,
        ]
    )


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
