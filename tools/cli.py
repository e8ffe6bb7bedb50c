"""What the commands in ``tools/`` share.

This imports nothing heavy, and commands import the package inside their ``main``: ``--help`` and a
wrong argument answer at once, and Ctrl-C is caught from the start.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# MMEngine's doing; the environment holds setuptools below 81 for it.
warnings.filterwarnings('ignore', 'pkg_resources is deprecated')


def run(main: Callable[[], int | None]) -> None:
    """Run a command; end the process with its exit code.

    An :class:`mmorepa.errors.UserError`, a missing dependency, or a file that cannot be read or
    written becomes one line on stderr and exit code 2; so does a lack of memory. Ctrl-C becomes
    exit code 130, SIGTERM 143 and SIGHUP 129, after what was half written is removed. Any other
    exception keeps its traceback: it is a bug.
    """
    # A shell that starts a command in the background lets it ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # A rank that waits for another one would not notice; its launcher ends all of them.
    if 'LOCAL_RANK' not in os.environ:
        signal.signal(signal.SIGTERM, _interrupt)
        # The terminal is closed, and there is no nohup.
        if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, _interrupt)
    try:
        code = _refuse_empty(sys.argv[1:]) or main() or 0
    except KeyboardInterrupt:
        code = _say_ended()
    except Exception as error:
        # Libraries turn an interrupted import into an error of their own.
        code = _say_ended() if _received else _say_error(error)
        if code is None:
            raise
    # What runs at exit has nothing to say any more: a second signal ends the process at once, and
    # torch's complaint about a loader's process that the same signal ended is not wanted.
    for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGCHLD'):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


def _refuse_empty(words: Sequence[str]) -> int:
    """An empty name, as of a variable of the shell that is not set, would stand for a folder."""
    for word in words:
        if not word or (word.startswith('--') and word.endswith('=')):
            return _say(f'error: {word!r} is an empty argument: wanted a name or a value', 2)
    return 0


#: The signals that ended the command.
_received: list[int] = []


def _interrupt(number: int, frame: object) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _say_ended() -> int:
    for number in _received:
        if number != signal.SIGINT:
            return _say(f'ended by {signal.Signals(number).name}', 128 + number)
    return _say('interrupted', 128 + signal.SIGINT)


def _say_error(error: Exception) -> int | None:
    errors = sys.modules.get('mmorepa.errors')  # not imported, it raised nothing
    if isinstance(error, (ImportError, *([errors.UserError] if errors else []))):
        return _say(f'error: {error}', 2)
    if isinstance(error, OSError):
        return _say(f'error: {_explained(error)}', 2)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _say('error: this takes more memory than there is: give it less to do at once', 2)
    return None


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _explained(error: OSError) -> str:
    if error.errno is None:  # of a process that loads data: its traceback, what was wrong last
        return str(error).strip().rpartition('\n')[2]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f' under {error.filename}' if error.filename else ''
        return f'the disk is full{where}: free some space, or write elsewhere'
    name = str(error.filename or '')
    if error.errno == errno.ENAMETOOLONG:
        return f'a name of {len(name)} characters is too long for the disk: {name[:40]}...'
    return f'{error.strerror}: {name}' if name else error.strerror


def count(text: str) -> int:
    """A whole number of at least 0, for the ``type`` of an argument."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is too few, wanted at least 0')
    return number


def positive(text: str) -> int:
    """A whole number of at least 1, for the ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is too few, wanted at least 1')
    return number


def share(text: str) -> float:
    """A number from 0 to 1, for the ``type`` of an argument."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{text} is out of range, wanted 0 to 1')
    return number


def factor(text: str) -> float:
    """A finite number above 0, for the ``type`` of an argument."""
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is no factor, wanted a finite number above 0')
    return number


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what a model is built from and loaded from: CONFIG, CHECKPOINT and ``--cfg-options``."""
    parser.add_argument('config', help='the config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='the checkpoint file, in training, plain or deploy form')
    add_config_options(parser)


def add_out(parser: argparse.ArgumentParser, help: str, **kwargs) -> None:
    """Add what is written: OUT, and ``--force``."""
    parser.add_argument('out', help=help, **kwargs)
    parser.add_argument('--force', action='store_true', help='replace existing files')


def add_probe_size(parser: argparse.ArgumentParser) -> None:
    """Add ``--probe-size``, the side of the image on which two forms are compared."""
    parser.add_argument(
        '--probe-size',
        type=positive,
        default=224,
        metavar='PIXELS',
        help='side of the probe image on which both forms are compared (default: 224)',
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, as OpenMMLab's own tools have it."""
    from mmengine.config import DictAction

    class Fields(DictAction):
        def __call__(self, parser, namespace, values, option_string=None):
            for text in values:
                if not text.partition('=')[0] or '=' not in text:
                    parser.error(f'{option_string} wants KEY=VALUE: got {text}')
            super().__call__(parser, namespace, values, option_string)

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Fields,
        metavar='KEY=VALUE',
        help='change fields of the config: key=value, nested.key=value, key="[a,b]"',
    )


def add_canvas_options(
    parser: argparse.ArgumentParser,
    formats: Sequence[str],
    canvases: Sequence[int],
    size: int,
) -> None:
    """Add what the converters of small data sets take: where to, which sets, how large.

    Args:
        parser (argparse.ArgumentParser): Gets the arguments.
        formats (Sequence[str]): The sets that there are.
        canvases (Sequence[int]): The default numbers of pictures for train and val.
        size (int): The default width and height of a picture in pixels.
    """
    parser.add_argument('out', type=Path, help='folder that gets one folder a format')
    parser.add_argument(
        '--formats', nargs='+', choices=formats, default=formats, help='sets to write (all)'
    )
    parser.add_argument(
        '--canvases',
        nargs=2,
        type=positive,
        metavar=('TRAIN', 'VAL'),
        default=canvases,
        help='number of COCO and Cityscapes pictures (%(default)s)',
    )
    parser.add_argument(
        '--size',
        type=positive,
        default=size,
        help='width and height of those pictures in pixels (%(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the scattering (%(default)s)')
    parser.add_argument(
        '--force', action='store_true', help='rewrite sets made with other arguments'
    )


def print_written(out: Path, written: Mapping[str, bool]) -> None:
    """Print which sets a converter wrote, and which were there."""
    for name, new in written.items():
        state = 'written' if new else 'there already, made with the same arguments'
        print(f'{out / name}: {state}')


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and the ``--local_rank`` that ``torch.distributed.launch`` passes on."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', action=_SetLocalRank, type=int, help=argparse.SUPPRESS
    )


class _SetLocalRank(argparse.Action):
    """MMEngine reads the rank from the environment."""

    def __call__(self, parser, namespace, value, option_string=None):
        os.environ.setdefault('LOCAL_RANK', str(value))
