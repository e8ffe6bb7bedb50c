"""Replacing a network's plain convolutions by blocks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ..batch_norm import is_batch_norm
from ..blocks.normed import AbsorbedNorm, NormedConv2d
from ..blocks.table import find_block
from ..reparam import ReparamConv2d
from .hooks import has_hook_between, take_hooks_over
from .pairs import conv_norm_pairs, held_outside, is_plain

#: Which convolutions to replace, see :func:`reparameterize`.
Where = str | Mapping | Callable[[str, nn.Conv2d], bool] | None
#: As many convolutions say why they were passed over when none was replaced.
SHOWN = 3


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
    it, and leaves alone convolutions that have none. Convolutions with a ``forward`` of their own
    stay, and so do those that a plain list or attribute holds besides the modules. Two more kinds
    stay unless ``where`` names them: frozen convolutions without a BatchNorm behind them, which are
    constants, and convolutions whose weight another module has too.

    Args:
        model (nn.Module): Any module: timm's, torchvision's, OpenMMLab's, your own.
        block (str | Mapping): A name of :data:`mmorepa.convs.blocks.table.BLOCKS`, or a mapping
            with that name under ``type`` and the block's options beside it.
        where (str | Mapping | Callable, optional): Which convolutions to replace: those whose
            dotted name contains a match of a regular expression; those that fit a mapping with a
            regular expression under ``name`` and one size or several under ``kernel_size``, or one
            of the two; those for which a function of name and convolution returns True. Defaults
            to all.
        keep_function (bool): Keep the model's weights, so that the changed model computes what it
            computed before. A convolution whose function its block cannot have stays plain, and a
            warning names it. Another warning names modules that cannot be traced, for blocks that
            take in the BatchNorm behind the convolution. Defaults to False, which gives the blocks
            fresh initial values.

    Returns:
        nn.Module: The model, or a block if ``model`` is itself a convolution.

    Raises:
        UserError: If there is no such block, ``where`` is not understood, it names convolutions
            that share a weight, or nothing is replaced. The model is then unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        >>> type(reparameterize(model, 'OREPA', keep_function=True)[0]).__name__
        'OREPAConv2d'
    """
    root = nn.Sequential(model)
    passed = PassedOver()
    matches = matcher(where)
    if not substitute(
        root,
        block,
        None if where is None else lambda name, conv: matches(_without_root(name), conv),
        keep_function,
        passed,
    ):
        name = block if isinstance(block, str) else block.get('type')
        raise UserError(
            f'{type(model).__name__} has no convolution that {name!r} can take the place of'
            + (f' where {where!r}' if where else '')
            + passed.in_words()
        )
    return root[0]


@dataclass
class PassedOver:
    """The convolutions that were not replaced.

    Attributes:
        reasons (dict[str, str]): Why not, by the name of the convolution.
    """

    reasons: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        """The first of them with their reasons, to be put behind an error message."""
        if not self.reasons:
            return ''
        first = list(self.reasons.items())[:SHOWN]
        more = len(self.reasons) - len(first)
        return (
            ': '
            + ', '.join(f'{_without_root(name)} has {reason}' for name, reason in first)
            + (f', and {more} more' if more else '')
        )


def substitute(
    model: nn.Module,
    block: str | Mapping,
    where: Where = None,
    keep_function: bool = False,
    passed: PassedOver | None = None,
) -> int:
    """Like :func:`reparameterize`, but returns the number of replaced convolutions, perhaps 0.

    Args:
        passed (PassedOver, optional): Gets the convolutions that ``where`` names and that were not
            replaced.
        model, block, where, keep_function: As for :func:`reparameterize`.
    """
    kind, options = find_block(block)
    matches = matcher(where)
    passed = PassedOver() if passed is None else passed
    convs = [(n, m) for n, m in model.named_modules() if is_plain(m) and matches(n, m)]
    pairs = {}
    # Tracing takes longer than all the rest, and generated blocks leave the BatchNorm where it is.
    if issubclass(kind, NormedConv2d) or not all(conv.weight.requires_grad for _, conv in convs):
        pairs = {id(pair.conv): pair for pair in conv_norm_pairs(model) if is_batch_norm(pair.norm)}
    blocks = {}
    absorbed = []
    unkept = {}
    users, hidden = _users_of_weights(model), held_outside(model)
    for name, conv in convs:
        pair = pairs.get(id(conv))
        norm = pair.norm if pair else None
        reason = kind.misfit(conv, norm, **options)
        sharing = [_without_root(user) for user in users[id(conv.weight)]]
        if not reason and len(sharing) > 1:
            if where is not None:
                raise UserError(
                    f'{" and ".join(sharing)} share one weight, which blocks of their own would '
                    "not: leave them out with 'where', or use one module in both places"
                )
            reason = f'the weight of {" and ".join(sharing)}'
        if not reason and where is None and norm is None and not conv.weight.requires_grad:
            reason = 'a frozen weight and no BatchNorm behind it'
        if not reason and id(conv) in hidden:
            reason = 'a second place, a plain list or attribute, that would keep it'
        if reason:
            passed.reasons[name] = reason
            continue
        try:
            new = kind.from_conv(conv, norm, **options)
        except UserError as error:
            raise UserError(f'{_without_root(name)}: {error}') from None
        if keep_function:
            try:
                if new.takes_norm and has_hook_between(conv, norm):
                    raise UserError('a hook is between the convolution and its BatchNorm')
                new.imitate(conv, norm)
            except UserError as error:
                unkept[_without_root(name)] = str(error)
                continue
        _take_over(new, conv, norm)
        blocks[id(conv)] = new
        if new.takes_norm:
            absorbed.append(pair)
    if unkept:
        name, reason = next(iter(unkept.items()))
        if not blocks:
            raise UserError(f'{name}: {reason}')
        warnings.warn(
            f'these stay plain, because blocks cannot keep their function: {", ".join(unkept)}; '
            f'{name}: {reason}',
            stacklevel=3,
        )
    unseen = dict.fromkeys(type(pair.parent).__name__ for pair in absorbed if not pair.is_seen)
    if keep_function and unseen:
        warnings.warn(
            f'torch.fx cannot trace {", ".join(unseen)}, whose BatchNorms were found by the order '
            'of the children: compare the models with mmorepa.verify',
            stacklevel=3,
        )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in blocks:
                parent._modules[name] = blocks[id(child)]
    for pair in absorbed:
        norm, absorbing = pair.norm, AbsorbedNorm(pair.norm, pair.conv)
        take_hooks_over(absorbing, norm)
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
    take_hooks_over(block, conv)


def _users_of_weights(model: nn.Module) -> dict[int, list[str]]:
    """The names of the modules that hold each tensor as their ``weight``, by its id."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get('weight')
        if weight is not None:
            users.setdefault(id(weight), []).append(name)
    return users


def matcher(where: Where) -> Callable[[str, nn.Conv2d], bool]:
    """The function of name and convolution that ``where`` stands for.

    Args:
        where (Where): See :func:`reparameterize`.

    Raises:
        UserError: If it is not understood.
    """
    if where is None:
        return lambda name, conv: True
    if callable(where):
        return where
    if isinstance(where, str):
        where = dict(name=where)
    if not isinstance(where, Mapping) or not where or set(where) - {'name', 'kernel_size'}:
        raise UserError(
            f'where={where!r} is not understood: wanted a regular expression, or a dict with name, '
            'kernel_size or both'
        )
    try:
        pattern = re.compile(where.get('name', ''))
    except (re.error, TypeError) as error:
        raise UserError(
            f'where has the name {where["name"]!r}, which is no regular expression: {error}'
        ) from None
    sizes = where.get('kernel_size')
    sizes = sizes if sizes is None or isinstance(sizes, Iterable) else [sizes]
    if sizes is not None and not all(isinstance(size, int) for size in sizes):
        raise UserError(
            f'where has kernel_size={where["kernel_size"]!r}: wanted a whole number, or a list of '
            'them'
        )

    def matches(name: str, conv: nn.Conv2d) -> bool:
        fits = sizes is None or conv.kernel_size in [(size, size) for size in sizes]
        return fits and pattern.search(name) is not None

    return matches


def _without_root(name: str) -> str:
    """A name in a sequence whose only child is the model, as a name in the model."""
    return name.removeprefix('0').removeprefix('.')
