"""Outputs as flat lists of tensors, and how far two such lists lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...convs import Agreement, verify


def flatten(outputs) -> list[Tensor]:
    """The tensors in nested lists and tuples, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for item in outputs for tensor in flatten(item)]


class _Given(nn.Module):
    """Has given its output already."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self) -> Tensor:
        return self.output


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
    return worst([verify(_Given(a), _Given(b)) for a, b in zip(first, second)])


def worst(found: Sequence[Agreement]) -> Agreement:
    """The largest differences in ``found``, and the smallest share of equal argmax."""
    # Python's max may lose a NaN.
    largest = torch.tensor([[a.max_abs, a.relative] for a in found]).double().amax(0).tolist()
    return Agreement(*largest, argmax=min(agreement.argmax for agreement in found))
