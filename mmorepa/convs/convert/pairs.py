"""Finding the BatchNorm behind each convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch_norm import is_batch_norm
from ..blocks.normed import AbsorbedNorm
from ..reparam import ReparamConv2d, has_own_forward
from .tracing import Calls, calls_of

#: How deep lists are searched for modules.
DEPTH = 3
#: What holds modules for others, who may call these one by one.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: The attributes of a weight that folding a norm into it leaves as they are.
KIND = ('device', 'dtype', 'shape', 'ndim')


class Pair(NamedTuple):
    """A convolution and the norm behind it, in the module that holds both.

    Attributes:
        parent (nn.Module): The module that holds both.
        conv_name (str): The convolution's name in ``parent``.
        norm_name (str): The norm's name in ``parent``.
        is_seen (bool): Whether torch.fx could see what ``parent`` does with them, or it is a
            sequence. Otherwise the order of its children alone tells. Defaults to True.
    """

    parent: nn.Module
    conv_name: str
    norm_name: str
    is_seen: bool = True

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
    torchvision and timm hold their children in this order. Where torch.fx can trace the module, or
    the one that runs its container, that also has to pass the convolution's output to the norm and
    to nothing else, in train and eval mode and with each flag of ``forward``: RepViT's BatchNorm,
    for one, follows a sum. Left out are modules with several names or with a ``forward`` of their
    own, those that a plain list or attribute holds too, and norms that do more than normalise,
    except timm's with an activation inside.
    """
    names = Counter(id(child) for module in model.modules() for child in module._modules.values())
    hidden = held_outside(model)
    owners = {
        id(child): (module, name)
        for module in model.modules()
        for name, child in module._modules.items()
    }

    def may_be_folded(module: nn.Module) -> bool:
        return names[id(module)] == 1 and id(module) not in hidden and not has_own_forward(module)

    found = []
    for parent in model.modules():
        if isinstance(parent, ReparamConv2d):
            continue
        if _runs_apart(parent):
            continue
        children = list(parent._modules.items())
        found += [
            Pair(parent, conv_name, norm_name)
            for (conv_name, conv), (norm_name, norm) in zip(children, children[1:])
            if (is_plain(conv) or isinstance(conv, ReparamConv2d))
            and (is_batch_norm(norm) or isinstance(norm, AbsorbedNorm))
            and norm.num_features == conv.out_channels
            and may_be_folded(conv)
            and may_be_folded(norm)
        ]
    runners = {id(pair.parent): _runner(pair.parent, owners) for pair in found}
    calls = calls_of({module for module, _ in runners.values()})
    for pair in found:
        runner, prefix = runners[id(pair.parent)]
        seen = calls[id(runner)]
        if prefix:
            seen = [call for call in seen if call.reaches_into(prefix)]
        if all(_is_direct(pair, prefix, call) for call in seen):
            yield pair._replace(is_seen=bool(seen) or type(pair.parent) is nn.Sequential)


def _runs_apart(module: nn.Module) -> bool:
    """Whether it is a ConvModule of mmcv whose norm does not run right behind its convolution.

    It holds conv, norm and activation in this order, whatever order it runs. Others may have an
    ``order`` of another meaning.
    """
    order = getattr(module, 'order', None)
    if not isinstance(order, (tuple, list)) or not {'conv', 'norm'} <= {*map(str, order)}:
        return False
    return 'conv norm' not in ' '.join(map(str, order))


def _runner(module: nn.Module, owners: dict) -> tuple[nn.Module, str]:
    """The module that may call the children of a container, and the prefix of their names there."""
    prefix = ''
    while type(module) in CONTAINERS and id(module) in owners:
        module, name = owners[id(module)]
        prefix = f'{name}.{prefix}'
    return module, prefix


def held_outside(model: nn.Module) -> set[int]:
    """The ids of the modules that some module holds without registering them as its child.

    They are held by a plain list, tuple or dict, or by an attribute that was set in ``__dict__``.
    Such a module can be called from a place that :meth:`torch.nn.Module.modules` does not show.
    """
    found: set[int] = set()

    def look(value: object, depth: int = 0) -> None:
        if isinstance(value, nn.Module):
            found.add(id(value))
        elif depth < DEPTH and isinstance(value, (list, tuple, set, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                look(item, depth + 1)

    for module in model.modules():
        if isinstance(module, AbsorbedNorm):
            continue  # which knows the block that took it in
        for name, value in vars(module).items():
            if name != '_modules':
                look(value)
    return found


def _is_direct(pair: Pair, prefix: str, call: Calls) -> bool:
    """Whether the norm gets the convolution's output, and nothing else gets it."""
    convs, norms = (
        {node for node in call.nodes if node.op == 'call_module' and node.target == name}
        for name in (f'{prefix}{pair.conv_name}', f'{prefix}{pair.norm_name}')
    )
    if any(_reads(node, pair, prefix) for node in call.nodes):
        return False
    if any(conv.meta.get('is_kept') for conv in convs):
        return False
    # A module that calls neither by itself leaves that to others, who know the order only. A flag
    # may leave one of them out, as that of mmcv's ConvModule does.
    if not convs or not norms:
        return not call.is_usual or not (convs or norms)
    return all(set(conv.users) <= norms for conv in convs) and all(
        set(norm.all_input_nodes) <= convs for norm in norms
    )


def _reads(node: fx.Node, pair: Pair, prefix: str) -> bool:
    """Whether a node reads weights that folding changes, and not only of which kind they are."""
    if node.op != 'get_attr':
        return False
    conv = pair.conv
    kernel = conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size
    is_read = node.target.startswith((f'{prefix}{pair.conv_name}.', f'{prefix}{pair.norm_name}.'))
    # A block's weight is computed, and torch.fx records the tensor without its name.
    return (is_read or node.meta.get('shape') == kernel) and not all(
        user.op == 'call_function' and user.target is getattr and user.args[1] in KIND
        for user in node.users
    )


def is_plain(module: nn.Module) -> bool:
    """Whether ``module`` is an exact ``nn.Conv2d`` without weight norm, pruning or the like."""
    return type(module) is nn.Conv2d and {'weight', 'bias'} <= module._parameters.keys()
