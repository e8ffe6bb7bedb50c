"""What MMEngine puts into checkpoints besides tensors and plain values, allowed while one loads.

With ``weights_only=True``, the default since torch 2.6, torch unpickles nothing else unless told
so, and MMEngine's ``resume`` stops there (open-mmlab/mmengine#1655). Allowed by name are

- ``HistoryBuffer``, which keeps what was logged, and the four averages it refers to,
- ``OneCycleParamScheduler`` and the two curves it refers to,
- NumPy's arrays, numbers and their dtypes, under the module names of both NumPy 1 and 2,
- ``ConfigDict``, as it may stand in a dataset's ``metainfo``.

All of them hold values; none runs code of the file's. torch's list is the process's: importing
this module leaves it alone.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

_MULTIARRAY = (np._core if hasattr(np, '_core') else np.core).multiarray


#: What MMEngine's states refer to by name, of which class.
_METHODS = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner: type, name: str):
    """Stands in for ``getattr`` while unpickling; gives these methods, nothing else."""
    if name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed')


def _named(function: Callable, module: str, name: str) -> Callable:
    """The function under another name; the unpickler looks for the one that the file has."""

    def renamed(*args):
        return function(*args)

    renamed.__module__ = module
    renamed.__name__ = renamed.__qualname__ = name
    return renamed


SAFE_GLOBALS = [
    *_METHODS,
    _named(_method, 'builtins', 'getattr'),
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

_LOCK = threading.Lock()


@contextlib.contextmanager
def safe_globals() -> Iterator[None]:
    """In the block ``torch.load(..., weights_only=True)`` takes the names above, and not after it.

    What the user has allowed stays allowed. Threads enter one after the other; a thread must not
    enter twice.
    """
    # One thread's end would take the names away from another that still loads.
    with _LOCK:
        # torch takes away at the end all that it was given, the user's own, too.
        allowed = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([it for it in SAFE_GLOBALS if it not in allowed]):
            yield
