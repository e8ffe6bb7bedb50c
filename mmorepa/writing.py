"""Writing files: whole or not at all, and over nothing unasked."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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
        UserError: If ``out`` has another ending, is one of the inputs, a folder or a device,
            exists, or is below a file or in a folder that may not be written to.
    """
    out = Path(out)
    if suffix is not None and out.suffix != suffix:
        raise UserError(f'{out} is no name for {what}: wanted the ending {suffix}')
    if os.path.realpath(out) in [os.path.realpath(path) for path in inputs if path]:
        raise UserError(f'{out} is what is to be {done}: choose another name for OUT')
    try:
        exists = out.exists()
    except OSError as error:  # of a name that is too long
        raise UserError(f'{out} cannot be written: {error.strerror}') from None
    _refuse_special(out)
    if exists and not force:
        raise UserError(f'{out} exists already: choose another name or pass --force')
    check_folder(out.parent, 'name for OUT')
    return out


def _refuse_special(path: Path) -> None:
    if path.is_dir():
        raise UserError(f'{path} is a folder: wanted a file to write')
    if path.exists() and not path.is_file():
        raise UserError(f'{path} is a device or a pipe: wanted a file to write')


def check_folder(path: str | os.PathLike, option: str = '--out') -> Path:
    """Make sure that results can go there, before anything is computed; nothing is made.

    Args:
        path (str | os.PathLike): A folder, there or not.
        option (str): The option that names it, for the message.

    Returns:
        Path: The folder.

    Raises:
        UserError: If it is a file or below one, or may not be written to.
    """
    folder = Path(path)
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:  # of a name that is too long
        raise UserError(
            f'{folder} is no place for results: {error.strerror}; choose another {option}'
        ) from None
    if not nearest.is_dir():
        raise UserError(
            f'{nearest} is a file: wanted a folder for results, choose another {option}'
        )
    if not os.access(nearest, os.W_OK):
        raise UserError(f'{nearest} may not be written to: choose another {option}')
    return folder


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, replace: bool = True) -> Iterator[Path]:
    """A temporary file in the folder of ``path``, renamed to it if the block ends well.

    Args:
        path (str | os.PathLike): The name that the file gets.
        replace (bool): Whether to replace a file of this name, also one that came to be while the
            block ran. Defaults to True.

    Raises:
        UserError: If there can be no file at ``path``, there is no space for it, or there is one
            and ``replace`` is False.
    """
    path = Path(path)
    _refuse_special(path)
    if path.is_symlink():  # what it points to is replaced, not the link
        path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from None
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_a_full_disk(path):
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


@contextlib.contextmanager
def naming_a_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """A context in which an error that comes of a full disk is one line with the place.

    Args:
        path (str | os.PathLike): The file or folder that is written to.

    Raises:
        UserError: If there is no space left, or the file exceeds a quota or a limit.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error
        # Writers in C++ raise an error of their own in front of it.
        while cause is not None and getattr(cause, 'errno', None) not in FULL:
            cause = cause.__cause__ or cause.__context__
        if cause is None and not _is_full(Path(path)):
            raise
        reason = os.strerror(errno.ENOSPC if cause is None else cause.errno)
        raise UserError(
            f'{path} cannot be written: {reason} on the disk of {Path(path).absolute().parent}; '
            'make space or choose another place'
        ) from None


#: The errors of a disk without space, of a quota, and of a file beyond the limit of the process.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.absolute().parent).free < 4096
    except OSError:
        return False


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


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike, option: str = '--work-dir') -> Iterator[None]:
    """A context in which no other process may be in it with the same folder.

    The folder itself is locked and the lock ends with the process, so that nothing is left behind.
    Where a file system or an operating system has no such locks, nothing is checked.

    Args:
        folder (str | os.PathLike): The folder. It is made if it is not there.
        option (str): The option that names it, for the message.

    Raises:
        UserError: If another process is in it.
    """
    if fcntl is None:
        yield
        return
    os.makedirs(folder, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'{folder} is where another training writes to: wait for its end, or name another '
                f'{option}'
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        # Processes that load data share the handle.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
