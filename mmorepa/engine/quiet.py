"""Keeping libraries from logging more than is wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


@contextmanager
def logging_at(level: int, *loggers: logging.Logger) -> Iterator[None]:
    """While the block runs, loggers pass on what is of this level and above.

    Args:
        level (int): Of Python's ``logging``.
        loggers (logging.Logger): Which; they get their own levels back.
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
    """:func:`logging_at` for MMEngine's logger, which names every parameter otherwise."""
    return logging_at(level, MMLogger.get_current_instance())
