"""Keeping the exporters' asides off the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ...engine.quiet import logging_at


@contextmanager
def quiet() -> Iterator[None]:
    """While the block runs, no warnings, and of torch's loggers errors alone.

    Tracing warns of every size that a library compares in Python. What comes of it is seen when
    the file is run at other sizes.
    """
    loggers = [logging.getLogger(name) for name in ('torch', 'torch.onnx', 'torch.fx')]
    with logging_at(logging.ERROR, *loggers), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextmanager
def silenced_children() -> Iterator[None]:
    """While the block runs, what is written to standard error is lost, compilers' notes included.

    They write to the file descriptor, which Python's ``sys.stderr`` does not stand for.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def first_line(error: Exception) -> str:
    """What an exception says, shortened to a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
