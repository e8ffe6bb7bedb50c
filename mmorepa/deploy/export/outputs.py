"""Outputs as flat lists of tensors, and how far two such lists lie apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...convs import Agreement


def flatten(outputs) -> list[Tensor]:
    """The tensors in nested lists and tuples, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for item in outputs for tensor in flatten(item)]


def compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> Agreement:
    """The worst agreement of any output: each is measured by its own largest magnitude.

    A detector's scores are many times as large as its box offsets, which would be lost in a
    common measure.

    Args:
        first (Sequence[Tensor]): The outputs that count as right.
        second (Sequence[Tensor]): Others, in the same order.

    Raises:
        ValueError: If they differ in number or shape.
    """
    if len(first) != len(second):
        raise ValueError(f'{len(first)} and {len(second)} outputs do not compare')
    return Agreement.worst([Agreement.of([a], [b]) for a, b in zip(first, second)])
