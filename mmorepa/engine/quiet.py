"""Keeping libraries from saying too much."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
def quiet_children() -> Iterator[None]:
    """A context in which standard error is lost, also that of other processes such as compilers.

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
