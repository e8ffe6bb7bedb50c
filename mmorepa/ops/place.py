"""Putting the operators in the place of ``mmcv._ext``: for a process, or for an environment."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from ..environment import compiled_ops
from ..errors import UserError

NAME = 'mmcv._ext'
MARK = (
    '# Written by `python -m mmorepa.ops install`; `python -m mmorepa.ops uninstall` removes it.\n'
)
TEXT = f'''{MARK}"""The operators of mmcv out of torchvision's."""

try:
    from mmorepa.ops.extension import *  # noqa: F403
    from mmorepa.ops.extension import __getattr__  # noqa: F401
except ModuleNotFoundError as error:
    if error.name.split('.')[0] != 'mmorepa':
        raise
    raise ImportError(
        f'{{__file__}} needs mmorepa, found none that has operators: '
        'pip install mmorepa, or delete this file'
    ) from None
'''


def provide() -> bool:
    """Have this process use the operators where its mmcv has no module of that name.

    Without mmcv, nothing happens.

    Returns:
        bool: Whether it now uses them because of this call.
    """
    if NAME in sys.modules or importlib.util.find_spec('mmcv') is None or state() != 'nothing':
        return False
    mmcv = importlib.import_module('mmcv')
    mmcv._ext = sys.modules[NAME] = importlib.import_module('.extension', __package__)
    return True


def state(folder: Path | None = None) -> str:
    """What is in the place of ``mmcv._ext``.

    Args:
        folder: of mmcv, the environment's unless given.

    Returns:
        str: 'compiled'; 'mmorepa' for what ``install`` wrote; 'other' for a Python file of somebody
        else; 'nothing'.

    Raises:
        UserError: there is no mmcv.
    """
    folder = folder or _mmcv()
    # Python takes a compiled module before a file of the same name.
    if compiled_ops(folder):
        return 'compiled'
    file = folder / '_ext.py'
    if not file.is_file():
        return 'nothing'
    return 'mmorepa' if _is_ours(file) else 'other'


def install(folder: Path | None = None) -> Path:
    """Write ``_ext.py`` into mmcv's folder, or write it anew.

    For commands that import ``mmcv.ops`` before they read a config.

    Args:
        folder: of mmcv, the environment's unless given.

    Returns:
        Path: The file.

    Raises:
        UserError: there is no mmcv, it has a compiled module or somebody else's, or the folder
            cannot be written to.
    """
    folder = folder or _mmcv()
    found = state(folder)
    if found == 'compiled':
        raise UserError(f'{folder} has compiled operators, which are the better ones: use them')
    if found == 'other':
        raise UserError(f'{folder / "_ext.py"} was not written by mmorepa: remove it first')
    file = folder / '_ext.py'
    new = folder / f'._ext.{os.getpid()}'
    try:
        # No process ever sees half of it.
        new.write_text(TEXT, encoding='utf-8')
        os.replace(new, file)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise UserError(f'{file} could not be written ({error.strerror})') from None
    return file


def uninstall(folder: Path | None = None) -> bool:
    """Remove what ``install`` wrote, nothing else.

    Args:
        folder: of mmcv, the environment's unless given.

    Returns:
        bool: Whether there was such a file.

    Raises:
        UserError: there is no mmcv, or ``_ext.py`` is somebody else's.
    """
    folder = folder or _mmcv()
    file = folder / '_ext.py'
    # Looked for by name: a compiled module that came later hides it.
    if not file.is_file():
        return False
    if not _is_ours(file):
        raise UserError(f'{file} was not written by mmorepa: it stays')
    file.unlink()
    return True


def _is_ours(file):
    with file.open(encoding='utf-8', errors='replace') as lines:
        return lines.readline() == MARK


def _mmcv():
    spec = importlib.util.find_spec('mmcv')
    if spec is None:
        raise UserError('no mmcv found in this environment: pip install mmcv-lite==2.1.0')
    return Path(next(iter(spec.submodule_search_locations)))
