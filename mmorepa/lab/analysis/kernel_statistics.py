"""How the numbers in one kernel are distributed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Bins of a histogram, and how many standard deviations it reaches to either side.
BINS, REACH = 81, 8.0


@dataclass(frozen=True)
class Statistics:
    """Of a kernel W, (O, I/g, k, k).

    Attributes:
        shape (tuple[int, ...]): Of W.
        std (float): Standard deviation of all numbers.
        kurtosis (float): Their excess kurtosis: 0 for a normal distribution, -1.2 for a uniform
            one; large where most are near zero and a few far away.
        extreme (float): The largest magnitude, in standard deviations.
        histogram (list[float]): Density of the numbers in standard deviations, in :data:`BINS`
            bins from -:data:`REACH` to :data:`REACH`; those beyond are in the outermost.
        norms (list[float]): The length of each output channel's kernel, (O,), largest first.
        singular_values (list[float]): Of W as a matrix (O, I/g * k^2), largest first.
        taps (list[list[float]]): The part of the energy |W|^2 at each position, (k, k).
    """

    shape: tuple[int, ...]
    std: float
    kurtosis: float
    extreme: float
    histogram: list[float]
    norms: list[float]
    singular_values: list[float]
    taps: list[list[float]]

    @property
    def norm_ratio(self) -> float:
        """The largest channel norm over the smallest; infinite where that is zero."""
        return self.norms[0] / self.norms[-1] if self.norms[-1] else float('inf')

    @property
    def rank(self) -> float:
        """The stable rank: |W|^2 over the square of the largest singular value, 1 to O."""
        first = self.singular_values[0]
        return sum(value**2 for value in self.singular_values) / first**2 if first else 0.0

    @property
    def centre(self) -> float:
        """The part of the energy in the middle 3 x 3 positions."""
        middle = len(self.taps) // 2
        return sum(
            sum(row[max(middle - 1, 0) : middle + 2])
            for row in self.taps[max(middle - 1, 0) : middle + 2]
        )


@torch.no_grad()
def statistics(kernel: Tensor) -> Statistics:
    """Describe a kernel, (O, I/g, k, k); computed in float64."""
    kernel = kernel.detach().double().cpu()
    numbers = kernel.flatten()
    std = numbers.std(unbiased=False)
    normed = (numbers - numbers.mean()) / std if std else torch.zeros_like(numbers)
    counts = torch.histc(normed.clamp(-REACH, REACH), BINS, -REACH, REACH)
    rows = kernel.flatten(1)
    energy = kernel.square().sum((0, 1))
    return Statistics(
        shape=tuple(kernel.shape),
        std=std.item(),
        kurtosis=(normed**4).mean().item() - 3,
        extreme=normed.abs().max().item(),
        histogram=(counts / counts.sum() / (2 * REACH / BINS)).tolist(),
        norms=rows.norm(dim=1).sort(descending=True).values.tolist(),
        singular_values=torch.linalg.svdvals(rows).tolist(),
        taps=(energy / energy.sum().clamp_min(1e-300)).tolist(),
    )


def bin_centres() -> list[float]:
    """The middle of each bin of a histogram, in standard deviations."""
    width = 2 * REACH / BINS
    return [-REACH + (i + 0.5) * width for i in range(BINS)]
