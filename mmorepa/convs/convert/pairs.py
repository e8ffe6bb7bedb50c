"""Finding the BatchNorm behind each convolution."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import fx, nn
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
    torchvision and timm hold their children in this order. Where torch.fx can trace the module, it
    also has to pass the convolution's output to the norm and to nothing else: RepViT's BatchNorm,
    for one, follows a sum. Modules that are shared between several places are left out, and so are
    norms that do more than normalise, except timm's with an activation inside.
    """
    parents = Counter(id(child) for module in model.modules() for child in module.children())
    for parent in model.modules():
        if isinstance(parent, ReparamConv2d):
            continue
        # mmcv's ConvModule holds conv, norm and activation in this order, whatever order it runs.
        if 'conv norm' not in ' '.join(getattr(parent, 'order', ('conv', 'norm'))):
            continue
        children = list(parent._modules.items())
        pairs = [
            Pair(parent, conv_name, norm_name)
            for (conv_name, conv), (norm_name, norm) in zip(children, children[1:])
            if (is_plain(conv) or isinstance(conv, ReparamConv2d))
            and (is_batch_norm(norm) or isinstance(norm, AbsorbedNorm))
            and norm.num_features == conv.out_channels
            and parents[id(conv)] == parents[id(norm)] == 1
        ]
        if pairs and type(parent) is not nn.Sequential:
            graph = _calls_of(parent)
            pairs = [pair for pair in pairs if graph is None or _is_direct(pair, graph)]
        yield from pairs


class _Children(fx.Tracer):
    """Traces a module down to the calls of its children."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def _calls_of(module: nn.Module) -> fx.Graph | None:
    """What a module does with its children, None where its flow of control depends on its input."""
    attributes = dict(vars(module))
    try:
        arguments = inspect.signature(module.forward).parameters.values()
        defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
        return _Children().trace(module, defaults)
    except Exception:  # of the module's own code, which was not written for this
        return None
    finally:
        # What the module keeps of its input in an attribute.
        vars(module).update(attributes)
        for name in vars(module).keys() - attributes.keys():
            delattr(module, name)


def _is_direct(pair: Pair, graph: fx.Graph) -> bool:
    """Whether the norm gets the convolution's output, and nothing else gets it."""
    convs, norms = (
        {node for node in graph.nodes if node.op == 'call_module' and node.target == name}
        for name in (pair.conv_name, pair.norm_name)
    )
    # A module that calls neither by itself leaves that to others, who know the order only.
    if not convs or not norms:
        return True
    return all(set(conv.users) <= norms for conv in convs) and all(
        set(norm.all_input_nodes) <= convs for norm in norms
    )


def is_plain(module: nn.Module) -> bool:
    """Whether ``module`` is an exact ``nn.Conv2d`` without weight norm or spectral norm."""
    return type(module) is nn.Conv2d and 'weight' in module._parameters
