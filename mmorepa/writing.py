"""Writing files: whole or not at all, and over nothing unasked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_out(
    out: str | os.PathLike,
    inputs: Sequence[str | os.PathLike | None] = (),
    force: bool = False,
    suffix: str | None = None,
    what: str = 'the result',
    done: str = 'converted',
) -> Path:
    """Make sure that a file may be written, before anything is computed.

    Args:
        out (str | os.PathLike): The file.
        inputs (Sequence): Files that are read and must stay. None stands for no file.
        force (bool): Whether an existing file may be replaced. Defaults to False.
        suffix (str, optional): The ending that ``out`` must have.
        what (str): What has this ending, for the message.
        done (str): What happens to the inputs, for the message.

    Returns:
        Path: The file.

    Raises:
        UserError: If ``out`` has another ending, is one of the inputs, or exists.
    """
    out = Path(out)
    if suffix is not None and out.suffix != suffix:
        raise UserError(f'{out} is no name for {what}: wanted the ending {suffix}')
    if os.path.realpath(out) in [os.path.realpath(path) for path in inputs if path]:
        raise UserError(f'{out} is what is to be {done}: choose another name for OUT')
    if out.exists() and not force:
        raise UserError(f'{out} exists already: choose another name or pass --force')
    return out


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, replace: bool = True) -> Iterator[Path]:
    """A temporary file in the folder of ``path``, renamed to it if the block ends well.

    Args:
        path (str | os.PathLike): The name that the file gets.
        replace (bool): Whether to replace a file of this name, also one that came to be while the
            block ran. Defaults to True.

    Raises:
        UserError: If there can be no file at ``path``, or there is one and ``replace`` is False.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{path} is a folder: wanted a file to write')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's file is private; give it the permissions a new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if replace:
            temporary.replace(path)
        else:
            _rename_to_a_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_to_a_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # which no two processes can do
    except FileExistsError:
        raise UserError(
            f'{path} exists already, another process has just written it: choose another name or '
            'pass --force'
        ) from None
    except OSError:  # of a file system without links
        temporary.replace(path)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write a text; the file is written whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(content: Any, path: str | os.PathLike) -> None:
    """Write plain values, nested or not; the file is written whole or not at all.

    Numbers that do not exist, NaN and infinity, become null.
    """
    write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + '\n', path)


def _finite(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def write_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG; the file is written whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format='png')
