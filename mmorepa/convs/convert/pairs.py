"""Finding the BatchNorm behind each convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch_norm import is_batch_norm
from ..blocks.normed import AbsorbedNorm
from ..reparam import ReparamConv2d


class Pair(NamedTuple):
    """A convolution and the norm behind it, in the module that holds both.

    Attributes:
        parent (nn.Module): The module that holds both.
        conv_name (str): The convolution's name in ``parent``.
        norm_name (str): The norm's name in ``parent``.
    """

    parent: nn.Module
    conv_name: str
    norm_name: str

    @property
    def conv(self) -> nn.Conv2d | ReparamConv2d:
        """The convolution."""
        return self.parent._modules[self.conv_name]

    @property
    def norm(self) -> _BatchNorm | AbsorbedNorm:
        """The norm."""
        return self.parent._modules[self.norm_name]


def conv_norm_pairs(model: nn.Module) -> Iterator[Pair]:
    """Each convolution with a norm directly behind it.

    A norm counts as behind a convolution if it is the next child of the same module. OpenMMLab,
    torchvision and timm hold their children in this order. Modules that are shared between several
    places are left out, and so are norms that do more than normalise, except timm's with an
    activation inside.
    """
    parents = Counter(id(child) for module in model.modules() for child in module.children())
    for parent in model.modules():
        if isinstance(parent, ReparamConv2d):
            continue
        # mmcv's ConvModule holds conv, norm and activation in this order, whatever order it runs.
        if 'conv norm' not in ' '.join(getattr(parent, 'order', ('conv', 'norm'))):
            continue
        children = list(parent._modules.items())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:]):
            if (
                (is_plain(conv) or isinstance(conv, ReparamConv2d))
                and (is_batch_norm(norm) or isinstance(norm, AbsorbedNorm))
                and norm.num_features == conv.out_channels
                and parents[id(conv)] == parents[id(norm)] == 1
            ):
                yield Pair(parent, conv_name, norm_name)


def is_plain(module: nn.Module) -> bool:
    """Whether ``module`` is an exact ``nn.Conv2d`` without weight norm or spectral norm."""
    return type(module) is nn.Conv2d and 'weight' in module._parameters
