"""What MMEngine puts into checkpoints besides tensors and plain values, made known to torch.

torch 2.6 and newer unpickle nothing else unless told so, and MMEngine's ``resume`` stops there
(open-mmlab/mmengine#1655). Importing this module allows by name

- ``HistoryBuffer``, which keeps what was logged, and the four averages it refers to,
- NumPy's arrays, numbers and their dtypes, under the module names of both NumPy 1 and 2,
- ``ConfigDict``, as it may stand in a dataset's ``metainfo``.

All of them hold values; none runs code of the file's.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

_MULTIARRAY = (np._core if hasattr(np, '_core') else np.core).multiarray


def _history_method(owner: type, name: str):
    """Stands in for ``getattr`` while unpickling; gives MMEngine's four averages, nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed')


def _named(function: Callable, module: str, name: str) -> Callable:
    """The function under another name; the unpickler looks for the one that the file has."""

    def renamed(*args):
        return function(*args)

    renamed.__module__ = module
    renamed.__name__ = renamed.__qualname__ = name
    return renamed


SAFE_GLOBALS = [
    HistoryBuffer,
    _named(_history_method, 'builtins', 'getattr'),
    ConfigDict,
    np.ndarray,
    np.dtype,
    # The number types are classes of their own since NumPy 1.25.
    *{type(np.dtype(kind)): None for kind in '?bhilqBHILQefdU'},
    *(
        _named(getattr(_MULTIARRAY, name), f'numpy.{core}.multiarray', name)
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
]

torch.serialization.add_safe_globals(SAFE_GLOBALS)
