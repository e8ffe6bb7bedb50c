"""The frequencies in a kernel, and what the frequency prior brings into it.

The spectrum is the orthonormal discrete cosine transform (DCT-II) over the k x k taps. Its basis
along an axis is cos(pi (h + 1/2) u / k) for the frequencies u from 0 to k - 1, the very cosines
that the frequency prior is made of (paper, sec. 3.3). The energy at (u, v) is the sum of the
squared coefficients over all pairs of an output and an input channel; over all (u, v) it adds up to
|W|^2.

The prior of output channel o has the frequency o + 1, counted anew in each half of the channels.
On k samples a cosine of frequency k is zero everywhere, one of 2 k is constant, and every other one
from k on is one of those below k up to its sign. So few of the filters differ, and some channels
have one of zeros, see :func:`distinct_filters`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...convs import kernels
from ...convs.blocks.branch_kernels import kind_of
from ...convs.orepa.block import OREPAConv2d
from ...convs.orepa.branches import Prior

#: What two filters that are the same may differ by.
SAME = 1e-6


def cosine_basis(size: int) -> Tensor:
    """The orthonormal DCT-II, (k, k) in float64: frequencies by positions.

    Args:
        size (int): k.
    """
    position = torch.arange(size, dtype=torch.float64) + 0.5
    frequency = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * frequency[:, None] * position / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def energy(kernel: Tensor) -> Tensor:
    """The energy of a kernel at each frequency.

    Args:
        kernel (Tensor): (O, I/g, k, k).

    Returns:
        Tensor: (k, k) in float64 on the CPU: frequencies down the rows, then along the columns.
    """
    basis = cosine_basis(kernel.shape[-1]).to(kernel.device)
    coefficients = basis @ kernel.double() @ basis.T
    return coefficients.square().sum((0, 1)).cpu()


@dataclass(frozen=True)
class Spectrum:
    """The energy of one generated kernel with and without the frequency prior.

    Attributes:
        name (str): The block's name in the model.
        kind (str): ``'stem'`` for a deep linear stem, else the kernel's size as ``'3x3'``.
        whole (list[list[float]]): Of the kernel, (k, k), see :func:`energy`.
        without (list[list[float]]): Of the kernel without its prior branches, in a deep linear
            stem without those of all layers.
        change (list[list[float]]): Of the difference of both.
    """

    name: str
    kind: str
    whole: list[list[float]]
    without: list[list[float]]
    change: list[list[float]]

    @property
    def size(self) -> float:
        """The length of the difference over that of the kernel; NaN for a kernel of zeros."""
        whole, change = total(self.whole), total(self.change)
        return math.sqrt(change / whole) if whole else math.nan


def total(spectrum: list[list[float]]) -> float:
    """The energy at all frequencies."""
    return sum(map(sum, spectrum))


def shares(spectrum: list[list[float]]) -> list[list[float]]:
    """Of the energy, at each frequency; NaN where there is none."""
    whole = total(spectrum)
    return [[value / whole if whole else math.nan for value in row] for row in spectrum]


def constant_share(spectrum: list[list[float]]) -> float:
    """Of the energy, the part at frequency (0, 0), which is blind to all but the mean."""
    return shares(spectrum)[0][0]


def rows_and_columns_share(spectrum: list[list[float]]) -> float:
    """Of the energy, the part at (u, 0) and (0, v), without (0, 0): waves along one axis."""
    part = shares(spectrum)
    return sum(part[0][1:]) + sum(row[0] for row in part[1:])


@torch.no_grad()
def measure(model: nn.Module) -> list[Spectrum]:
    """The spectrum of each kernel that has a frequency prior.

    Args:
        model (nn.Module): Any module with OREPA blocks in training form.

    Returns:
        list[Spectrum]: In the model's order.
    """
    found = []
    for name, block in model.named_modules():
        if not isinstance(block, OREPAConv2d) or not any(
            isinstance(module, Prior) for module in block.modules()
        ):
            continue
        whole, without = (kernel_of(block, with_prior).double() for with_prior in (True, False))
        spectra = [energy(kernel).tolist() for kernel in (whole, without, whole - without)]
        found.append(Spectrum(name, kind_of(block), *spectra))
    return found


def kernel_of(block: OREPAConv2d, with_prior: bool = True) -> Tensor:
    """The kernel of a block, (O, I/g, k, k), or what it would be without its prior branches.

    Both are added up in the same way, so that a prior of zeros makes no difference at all.
    """
    zeros = {
        f'{name}.weight': torch.zeros_like(module.weight)
        for name, module in block.kernel.named_modules()
        if isinstance(module, Prior) and not with_prior
    }
    return torch.func.functional_call(block.kernel, zeros, ())


@dataclass(frozen=True)
class Filter:
    """A filter of the frequency prior, for all channels that have it up to its sign.

    Attributes:
        text (str): What it is: ``'rows 1'``, a wave down the rows of frequency 1; ``'constant'``;
            ``'zero'``.
        values (list[list[float]]): (k, k), of the first channel that has it.
        channels (int): How many have it.
    """

    text: str
    values: list[list[float]]
    channels: int


def distinct_filters(out_channels: int, kernel_size: int) -> list[Filter]:
    """The filters of a frequency prior that differ by more than their sign, in order.

    Args:
        out_channels (int): O.
        kernel_size (int): k.

    Example:
        >>> {f.text: f.channels for f in distinct_filters(12, 3)}
        {'rows 1': 2, 'rows 2': 2, 'zero': 2, 'constant': 2, 'columns 1': 2, 'columns 2': 2}
    """
    found: dict[str, list[Tensor]] = {}
    for values in kernels.frequency_prior(out_channels, kernel_size)[:, 0]:
        found.setdefault(_describe(values), []).append(values)
    return [Filter(text, same[0].tolist(), len(same)) for text, same in found.items()]


def _describe(values: Tensor) -> str:
    spectrum = energy(values[None, None])
    whole = spectrum.sum()
    if whole < SAME:
        return 'zero'
    row, column = divmod(spectrum.argmax().item(), len(values))
    if not row and not column:
        return 'constant'
    return f'rows {row}' if row else f'columns {column}'
