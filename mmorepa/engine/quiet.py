"""Keeping libraries from logging too much."""

from __future__ import annotations

import logging
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
