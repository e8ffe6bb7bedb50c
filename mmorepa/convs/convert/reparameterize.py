"""Putting blocks in the place of a network's plain convolutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

from ...errors import UserError
from ..blocks.normed import AbsorbedNorm
from ..blocks.table import find_block
from .pairs import conv_norm_pairs, is_batch_norm, is_plain

#: Which convolutions to replace: a regular expression to be found in the dotted name, or a
#: function of the name and the convolution. None stands for all.
Where = str | Callable[[str, nn.Conv2d], bool] | None


def reparameterize(
    model: nn.Module,
    block: str | Mapping = 'OREPA',
    where: Where = None,
    keep_function: bool = False,
) -> nn.Module:
    """Turn plain convolutions of any torch model into blocks, in place.

    Only exact ``nn.Conv2d`` of odd, square kernels with zero padding are replaced, of the sizes
    that the block is made for; deformable, weight-standardised and other convolutions stay. A
    block with BatchNorms inside takes the place of a convolution and the BatchNorm behind it, and
    leaves convolutions alone that have none.

    Args:
        model (nn.Module): Any module: timm's, torchvision's, OpenMMLab's, your own.
        block (str | Mapping): A name of :data:`mmorepa.convs.blocks.table.BLOCKS`, or a mapping
            with it under ``type`` and the block's options beside it.
        where (str | Callable, optional): See :data:`Where`.
        keep_function (bool): Start where the model is, so that pretrained weights are kept: the
            changed model computes what it computed before. Defaults to False, a fresh start.

    Returns:
        nn.Module: The model; a block, if ``model`` is itself a convolution.

    Raises:
        UserError: If there is no such block, nothing to replace, or a function that a block cannot
            keep; then the model is as it was.

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
    """As :func:`reparameterize`, but returns how many convolutions were replaced, perhaps none."""
    kind, options = find_block(block)
    pairs = {id(pair.conv): pair for pair in conv_norm_pairs(model) if is_batch_norm(pair.norm)}
    blocks = {}
    absorbed = []
    for name, conv in model.named_modules():
        if not is_plain(conv) or not _matches(where, name, conv):
            continue
        pair = pairs.get(id(conv))
        norm = pair.norm if pair else None
        if not kind.accepts(conv, norm, **options):
            continue
        try:
            new = kind.from_conv(conv, norm, **options)
            if keep_function:
                new.imitate(conv, norm)
        except UserError as error:
            raise UserError(f'{name.removeprefix("0.")}: {error}') from None
        new.train(conv.training)
        if not conv.weight.requires_grad:
            new.requires_grad_(False)
        blocks[id(conv)] = new
        if new.takes_norm:
            absorbed.append(pair)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in blocks:
                parent._modules[name] = blocks[id(child)]
    for pair in absorbed:
        pair.parent._modules[pair.norm_name] = AbsorbedNorm(pair.norm, pair.conv)
    return len(blocks)


def _matches(where: Where, name: str, conv: nn.Conv2d) -> bool:
    if where is None:
        return True
    return re.search(where, name) is not None if isinstance(where, str) else where(name, conv)


def _without_root(where: Where) -> Where:
    """``where`` for the names in a sequence that holds the model alone."""
    if where is None:
        return None
    return lambda name, conv: _matches(where, name.removeprefix('0').removeprefix('.'), conv)
