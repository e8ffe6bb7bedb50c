"""Adaptive average pooling as operators that ONNX has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class SizelessAdaptiveAvgPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` written as two matrix products, for any image size.

    ONNX has no such operator. torch writes it as ``AveragePool``, which wants the size to be known
    and to be a multiple of the number of bins. Bin i of b over n pixels is the mean of pixels
    ``floor(i n / b)`` to ``ceil((i + 1) n / b) - 1``: a row of a (b, n) matrix.

    Args:
        bins (int): The number of bins along both height and width.
    """

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, bins, bins)."""
        rows, columns = (self.means(x, axis) for axis in (2, 3))
        return rows @ x @ columns.transpose(0, 1)

    def means(self, x: Tensor, axis: int) -> Tensor:
        """The (bins, n) matrix of means over an axis of ``x``."""
        # The length as a tensor that a trace keeps open.
        length = torch._shape_as_tensor(x)[axis]
        pixel = torch.arange(x.shape[axis], device=x.device)
        bin = torch.arange(self.bins, device=x.device)[:, None]
        first = bin * length // self.bins
        end = ((bin + 1) * length + self.bins - 1) // self.bins
        inside = (pixel >= first) & (pixel < end)
        return inside.to(x.dtype) / (end - first).to(x.dtype)


@contextlib.contextmanager
def sizeless_pools(model: nn.Module, sample: Tensor | None = None) -> Iterator[None]:
    """A context in which ``model`` has :class:`SizelessAdaptiveAvgPool2d` where ONNX needs it.

    Args:
        model (nn.Module): Any module. Its pools to one bin, which are ONNX's ``GlobalAveragePool``,
            stay as they are.
        sample (Tensor, optional): An input of the only size that is wanted. Pools whose input is
            then a multiple of the bins stay as well.
    """
    pools = [m for m in model.modules() if type(m) is nn.AdaptiveAvgPool2d and bins_of(m) != 1]
    stays = set() if sample is None else _divisible(model, pools, sample)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child in pools and child not in stays and isinstance(bins_of(child), int)
    ]
    try:
        for parent, name, child in places:
            parent._modules[name] = SizelessAdaptiveAvgPool2d(bins_of(child)).eval()
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


def bins_of(pool: nn.AdaptiveAvgPool2d) -> int | tuple:
    """Of ``pool``, one number where both axes have the same."""
    size = pool.output_size
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


def _divisible(model: nn.Module, pools: list[nn.Module], sample: Tensor) -> set[nn.Module]:
    found = set()

    def note(pool, args):
        height, width = args[0].shape[2:]
        bins = bins_of(pool)
        if isinstance(bins, int) and not (height % bins or width % bins):
            found.add(pool)

    hooks = [pool.register_forward_pre_hook(note) for pool in pools]
    try:
        with torch.no_grad():
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return found
