"""Errors that are the user's to mend, and how they are put into one line."""

import contextlib
import traceback
from collections.abc import Iterator

#: The file of MMEngine in which objects are built from configs.
BUILDING = 'mmengine/registry/build_functions.py'


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: found, wanted, what to do."""


def first_line(error: Exception) -> str:
    """The first line of what an exception says; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def explained_building(source: str) -> Iterator[None]:
    """Turn what goes wrong while MMEngine builds an object from a config into a :class:`UserError`.

    A wrong type, an unknown argument, a value that a class does not take, a data set that is not
    there: the message names the config and the first line of what was wrong. Errors of anything
    else pass.

    Args:
        source (str): The config, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.filename.endswith(BUILDING) for frame in frames):
            raise
        kind = '' if isinstance(error, (KeyError, AssertionError)) else f'{type(error).__name__}: '
        raise UserError(
            f'{source} does not build: {kind}{first_line(error)}: change the config, or that '
            'field with --cfg-options'
        ) from error
