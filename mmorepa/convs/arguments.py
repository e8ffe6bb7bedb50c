"""Checks of the arguments of a block, whose values often come from a config."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ..errors import UserError


def check_integers(owner: str, least: int = 1, **values: Any) -> None:
    """Refuse arguments that are no integers of at least ``least``.

    Args:
        owner (str): The class that the error names.
        least (int): The smallest allowed value. Defaults to 1.
        values: The arguments by name. Each is a number, or a list or tuple of two for height and
            width.

    Raises:
        UserError: If there is one.
    """
    for name, value in values.items():
        numbers = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value,)
        if not all(_is_integer(number) and number >= least for number in numbers):
            raise UserError(f'{owner}: {name}={value!r}, wanted an integer of at least {least}')


def check_flag(owner: str, **values: Any) -> None:
    """Refuse arguments that are neither True nor False.

    Args:
        owner (str): The class that the error names.
        values: The arguments by name.

    Raises:
        UserError: If there is one.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UserError(f'{owner}: {name}={value!r}, wanted True or False')


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
