"""What the commands in ``tools/`` share."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

from .errors import UserError

# MMEngine's doing; the environment holds setuptools below 81 for it.
warnings.filterwarnings('ignore', 'pkg_resources is deprecated')


def run(main: Callable[[], int | None]) -> None:
    """Run a command; end the process with its exit code.

    A :class:`UserError` or a missing dependency becomes one line on stderr and exit code 2,
    Ctrl-C exit code 130. Any other exception keeps its traceback: it is a bug.
    """
    try:
        code = main() or 0
    except (UserError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = 130
    sys.exit(code)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, as OpenMMLab's own tools have it."""
    from mmengine.config import DictAction

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change fields of the config: key=value, nested.key=value, key="[a,b]"',
    )
