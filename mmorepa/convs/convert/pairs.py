"""Which BatchNorm stands behind which convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..blocks.normed import AbsorbedNorm
from ..reparam import ReparamConv2d


class Pair(NamedTuple):
    """A convolution and what stands behind it, in the module that holds both.

    Attributes:
        parent (nn.Module): Holds both.
        conv_name (str): The convolution's name there.
        norm_name (str): The norm's name there.
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

    "Behind" is read off the order in which a module holds its children, which is how OpenMMLab,
    torchvision and timm write theirs. Modules shared between several places are left out, and
    norms that do more than normalise, such as timm's with an activation inside.
    """
    parents = Counter(id(child) for module in model.modules() for child in module.children())
    for parent in model.modules():
        if isinstance(parent, ReparamConv2d):
            continue
        # mmcv's ConvModule holds conv, norm and activation in this order whatever it runs.
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
    """Whether it is an ``nn.Conv2d`` whose weight is not computed, by weight or spectral norm."""
    return type(module) is nn.Conv2d and 'weight' in module._parameters


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm and nothing more."""
    forwards = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return isinstance(module, _BatchNorm) and type(module).forward in forwards
