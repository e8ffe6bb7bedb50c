"""Replacing a network's plain convolutions by blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ..blocks.normed import AbsorbedNorm
from ..blocks.table import find_block
from ..reparam import ReparamConv2d
from .pairs import conv_norm_pairs, is_batch_norm, is_plain

#: Which convolutions to replace: those whose dotted name contains a match of a regular expression,
#: or those for which a function of name and convolution returns True. None stands for all.
Where = str | Callable[[str, nn.Conv2d], bool] | None


def reparameterize(
    model: nn.Module,
    block: str | Mapping = 'OREPA',
    where: Where = None,
    keep_function: bool = False,
) -> nn.Module:
    """Replace plain convolutions of any torch model by blocks, in place.

    A convolution is replaced if it is an exact ``nn.Conv2d`` with zero padding and an odd, square
    kernel of a size that the block supports. Deformable, weight-standardised and other convolutions
    stay. A block with BatchNorms inside replaces a convolution together with the BatchNorm behind
    it, and leaves alone convolutions that have none.

    Args:
        model (nn.Module): Any module: timm's, torchvision's, OpenMMLab's, your own.
        block (str | Mapping): A name of :data:`mmorepa.convs.blocks.table.BLOCKS`, or a mapping
            with that name under ``type`` and the block's options beside it.
        where (str | Callable, optional): Which convolutions to replace, see :data:`Where`. Defaults
            to all.
        keep_function (bool): Keep the model's weights, so that the changed model computes what it
            computed before. Defaults to False, which gives the blocks fresh initial values.

    Returns:
        nn.Module: The model, or a block if ``model`` is itself a convolution.

    Raises:
        UserError: If there is no such block, if there is nothing to replace, or if a block cannot
            keep the function. The model is then unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        >>> type(reparameterize(model, 'OREPA', keep_function=True)[0]).__name__
        'OREPAConv2d'
    """
    root = nn.Sequential(model)
    if not substitute(root, block, _without_root(where), keep_function):
        name = block if isinstance(block, str) else block.get('type')
        raise UserError(
            f'{type(model).__name__} has no convolution that {name!r} can take the place of'
            + (f' where {where!r}' if where else '')
        )
    return root[0]


def substitute(
    model: nn.Module, block: str | Mapping, where: Where = None, keep_function: bool = False
) -> int:
    """Like :func:`reparameterize`, but returns the number of replaced convolutions, perhaps 0."""
    kind, options = find_block(block)
    pairs = {id(pair.conv): pair for pair in conv_norm_pairs(model) if is_batch_norm(pair.norm)}
    blocks = {}
    absorbed = []
    users = _users_of_weights(model)
    for name, conv in model.named_modules():
        if not is_plain(conv) or not _matches(where, name, conv):
            continue
        pair = pairs.get(id(conv))
        norm = pair.norm if pair else None
        if not kind.accepts(conv, norm, **options):
            continue
        if len(users[id(conv.weight)]) > 1:
            names = ' and '.join(user.removeprefix('0.') for user in users[id(conv.weight)])
            raise UserError(
                f'{names} share one weight, which blocks of their own would not: leave them out '
                "with 'where', or use one module in both places"
            )
        try:
            new = kind.from_conv(conv, norm, **options)
            if keep_function:
                new.imitate(conv, norm)
        except UserError as error:
            raise UserError(f'{name.removeprefix("0.")}: {error}') from None
        _take_over(new, conv, norm)
        blocks[id(conv)] = new
        if new.takes_norm:
            absorbed.append(pair)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in blocks:
                parent._modules[name] = blocks[id(child)]
    for pair in absorbed:
        norm, absorbing = pair.norm, AbsorbedNorm(pair.norm, pair.conv)
        _take_hooks_over(absorbing, norm)
        pair.parent._modules[pair.norm_name] = absorbing
    return len(blocks)


def _take_over(block: ReparamConv2d, conv: nn.Conv2d, norm: _BatchNorm | None) -> None:
    """Give a block the mode, the frozen parts and the hooks of what it takes the place of."""
    block.train(norm.training if block.takes_norm else conv.training)
    if not conv.weight.requires_grad:
        block.requires_grad_(False)
    if block.takes_norm:
        for branch in block.children():
            branch.norm.weight.requires_grad_(norm.weight.requires_grad)
            branch.norm.bias.requires_grad_(norm.bias.requires_grad)
    elif conv.bias is not None:
        block.bias.requires_grad_(conv.bias.requires_grad)
    _take_hooks_over(block, conv)


def _take_hooks_over(new: nn.Module, old: nn.Module) -> None:
    """Give a module the forward and backward hooks of another; their handles still remove them."""
    for name, hooks in vars(old).items():
        if name.startswith(('_forward_', '_backward_')) and hooks:
            vars(new)[name] = hooks


def _users_of_weights(model: nn.Module) -> dict[int, list[str]]:
    """The names of the modules that hold each tensor as their ``weight``, by its id."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get('weight')
        if weight is not None:
            users.setdefault(id(weight), []).append(name)
    return users


def _matches(where: Where, name: str, conv: nn.Conv2d) -> bool:
    if where is None:
        return True
    return re.search(where, name) is not None if isinstance(where, str) else where(name, conv)


def _without_root(where: Where) -> Where:
    """``where`` for names in a sequence whose only child is the model."""
    if where is None:
        return None
    return lambda name, conv: _matches(where, name.removeprefix('0').removeprefix('.'), conv)
