"""Keeping libraries from saying too much."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mmengine.logging import MMLogger


@contextmanager
def logging_at(level: int, *loggers: logging.Logger) -> Iterator[None]:
    """A context in which loggers pass on only messages of this level and above.

    Args:
        level (int): A level of Python's ``logging``.
        loggers (logging.Logger): The loggers. Their own levels are restored afterwards.
    """
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own in zip(loggers, levels):
            logger.setLevel(own)


def quiet_mmengine(level: int = logging.ERROR):
    """:func:`logging_at` for MMEngine's logger, which otherwise logs every parameter."""
    return logging_at(level, MMLogger.get_current_instance())


@contextmanager
def quiet_torch() -> Iterator[None]:
    """A context without warnings, and with only errors of torch's loggers.

    torch's exporters, its tracer and torch.ao warn of their own doings, and of every size that a
    library compares in Python.
    """
    loggers = [logging.getLogger(name) for name in ('torch', 'torch.onnx', 'torch.fx')]
    with logging_at(logging.ERROR, *loggers), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextmanager
def lost(stream: TextIO) -> Iterator[None]:
    """A context in which what is written to a standard stream is lost, whoever writes it.

    Compilers in processes of their own and torch's C++ code write to the file descriptor, which
    Python's ``contextlib.redirect_stdout`` does not change.

    Args:
        stream (TextIO): ``sys.stdout`` or ``sys.stderr``.
    """
    number = 1 if stream is sys.stdout else 2
    stream.flush()
    kept = os.dup(number)
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), number)
        yield
    finally:
        stream.flush()
        os.dup2(kept, number)
        os.close(kept)
