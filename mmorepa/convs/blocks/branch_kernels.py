"""The kernels of a block's branches, and how alike they are.

A block's kernel W is the sum of its branches' kernels W_b. Everything here is computed from their
inner products, the Gram matrix <W_b, W_c>:

- the cosine of two branches, <W_b, W_c> / (|W_b| |W_c|). It is 1 for kernels that differ only in
  size, and 0 for orthogonal kernels.
- the similarity of a block's branches: the mean cosine over all pairs. The lower it is, the more
  diverse are the branches. It is the paper's figure of branch-level similarity.
- the share of a branch, <W_b, W> / |W|^2. The shares of a block add up to one.

A branch of zero length, such as the frequency prior before training, has no cosines.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..orepa.block import BranchSum, DeepLinearStem, OREPAConv2d
from ..orepa.branches import Branch
from ..reparam import ReparamConv2d
from .normed import NormedBranch, NormedConv2d


class Sum(NamedTuple):
    """Branches that are added up, and where they are.

    Attributes:
        name (str): The block's name in the model. In a deep linear stem the number of the layer
            follows.
        kind (str): ``'stem'`` in a deep linear stem, else the kernel's size as ``'3x3'``.
        branches (dict[str, Branch | NormedBranch]): The branches by name.
    """

    name: str
    kind: str
    branches: dict[str, Branch | NormedBranch]


def named_blocks(model: nn.Module, name: str = '') -> Iterator[tuple[str, ReparamConv2d]]:
    """The blocks of a model by name, without blocks inside other blocks."""
    if isinstance(model, ReparamConv2d):
        yield name, model
        return
    for child_name, child in model.named_children():
        yield from named_blocks(child, f'{name}.{child_name}'.removeprefix('.'))


def branch_sums(model: nn.Module) -> list[Sum]:
    """All sums of branches that have names, in the model's order.

    These are OREPA blocks, each layer of a deep linear stem, and the blocks with BatchNorms inside.
    An OREPA block inside such a block is a separate sum.

    Args:
        model (nn.Module): Any module with blocks in training form.
    """
    sums = []
    for name, block in model.named_modules():
        if isinstance(block, NormedConv2d):
            sums.append(_sum(name, kind_of(block), block))
        elif isinstance(block, OREPAConv2d) and isinstance(block.kernel, DeepLinearStem):
            for number, layer in enumerate(block.kernel):
                sums.append(_sum(f'{name}.{number}'.removeprefix('.'), 'stem', layer))
        elif isinstance(block, OREPAConv2d):
            sums.append(_sum(name, kind_of(block), block.kernel))
    return sums


def _sum(name: str, kind: str, parent: NormedConv2d | BranchSum) -> Sum:
    return Sum(name, kind, dict(parent.named_children()))


def kind_of(block: ReparamConv2d) -> str:
    """``'stem'`` for a deep linear stem, else the kernel's size as ``'3x3'``."""
    if isinstance(block, OREPAConv2d) and isinstance(block.kernel, DeepLinearStem):
        return 'stem'
    return '{}x{}'.format(*block.kernel_size)


def branch_kernel(branch: Branch | NormedBranch, with_scale: bool = True) -> Tensor:
    """The equivalent kernel of a branch, (O, I/g, k, k).

    Args:
        branch (Branch | NormedBranch): A branch of an OREPA block, or of a block with BatchNorms
            inside.
        with_scale (bool): False leaves out the scaling layer, or the BatchNorm at the end, which
            in eval mode scales each output channel too. Defaults to True.

    Returns:
        Tensor: The kernel in float32 at least, with a graph if gradients are enabled.
    """
    if not with_scale:
        branch = _without_scale(branch)
    kernel = branch() if isinstance(branch, Branch) else branch.merged()[0]
    return kernel if kernel.dtype == torch.float64 else kernel.float()


def _without_scale(branch: Branch | NormedBranch) -> Branch | NormedBranch:
    bare = copy.copy(branch)  # shares all tensors; its dicts are replaced, not written to
    if isinstance(branch, Branch):
        bare._parameters = {**branch._parameters, 'scale': None}
    else:
        bare._modules = {**branch._modules, 'norm': nn.Identity()}
    return bare


@torch.no_grad()
def gram_matrix(branches: dict[str, Branch | NormedBranch], with_scale: bool = True) -> Tensor:
    """The inner products of the branches' kernels, (B, B), on their device.

    Args:
        branches (dict[str, Branch | NormedBranch]): B branches of the same shape.
        with_scale (bool): See :func:`branch_kernel`.
    """
    kernels = [branch_kernel(branch, with_scale).flatten() for branch in branches.values()]
    dtype = max((kernel.dtype for kernel in kernels), key=lambda dtype: dtype.itemsize)
    rows = torch.stack([kernel.to(dtype) for kernel in kernels])
    return rows @ rows.T


@dataclass(frozen=True)
class BranchGram:
    """Statistics of the branches of a sum, computed from their inner products.

    Attributes:
        names (tuple[str, ...]): The names of the B branches.
        gram (list[list[float]]): Their inner products, (B, B).
    """

    names: tuple[str, ...]
    gram: list[list[float]]

    @property
    def norms(self) -> list[float]:
        """The Frobenius norm of each branch's kernel."""
        return [math.sqrt(max(row[i], 0.0)) for i, row in enumerate(self.gram)]

    @property
    def kernel_norm(self) -> float:
        """The Frobenius norm of the sum of all kernels."""
        return math.sqrt(max(sum(map(sum, self.gram)), 0.0))

    @property
    def cosines(self) -> list[list[float]]:
        """The cosine of each pair, (B, B); NaN for pairs with a branch of zero length."""
        norms = self.norms
        return [
            [value / (a * b) if a and b else math.nan for value, b in zip(row, norms)]
            for row, a in zip(self.gram, norms)
        ]

    @property
    def shares(self) -> list[float]:
        """The share of each branch in the sum; they add up to one. NaN if the sum is zero."""
        total = sum(map(sum, self.gram))
        return [sum(row) / total if total else math.nan for row in self.gram]

    @property
    def pairs(self) -> dict[tuple[str, str], float]:
        """The cosine of each pair of different branches that has one, by their names."""
        cosines = self.cosines
        found = {
            (self.names[i], self.names[j]): cosines[i][j]
            for i, j in combinations(range(len(self.names)), 2)
        }
        return {pair: cosine for pair, cosine in found.items() if not math.isnan(cosine)}

    @property
    def similarity(self) -> float:
        """The mean cosine over :attr:`pairs`; NaN if there is none."""
        cosines = list(self.pairs.values())
        return sum(cosines) / len(cosines) if cosines else math.nan

    @property
    def magnitude(self) -> float:
        """The mean magnitude of the cosines in :attr:`pairs`; NaN if there is none."""
        cosines = list(map(abs, self.pairs.values()))
        return sum(cosines) / len(cosines) if cosines else math.nan


def measure(branches: dict[str, Branch | NormedBranch], with_scale: bool = True) -> BranchGram:
    """Compare the branches of a sum. The arguments are those of :func:`gram_matrix`."""
    return BranchGram(tuple(branches), gram_matrix(branches, with_scale).tolist())
