"""The table of all blocks, by the names that configs and ``mmorepa.reparameterize`` accept."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import UserError
from ..orepa.block import OREPAConv2d
from ..reparam import ReparamConv2d
from .acnet import ACNetConv2d
from .dbb import DBBConv2d
from .expandnet import ExpandConv2d
from .mobileone import MobileOneConv2d
from .repvgg import OREPARepVGGConv2d, RepVGGConv2d
from .tweaked import TweakedOREPAConv2d

BLOCKS: dict[str, type[ReparamConv2d]] = {
    'OREPA': OREPAConv2d,
    'TweakedOREPA': TweakedOREPAConv2d,
    'DBB': DBBConv2d,
    'RepVGG': RepVGGConv2d,
    'OREPA-RepVGG': OREPARepVGGConv2d,
    'ACNet': ACNetConv2d,
    'ExpandNet': ExpandConv2d,
    'MobileOne': MobileOneConv2d,
}


def find_block(block: str | Mapping) -> tuple[type[ReparamConv2d], dict]:
    """The class of a block and its options.

    Args:
        block (str | Mapping): A name of :data:`BLOCKS`, or a mapping with that name under ``type``
            and options beside it.

    Raises:
        UserError: If there is no such block, or it has no such option.
    """
    options = dict(block) if isinstance(block, Mapping) else {'type': str(block)}
    name = options.pop('type', None)
    if name not in BLOCKS:
        raise UserError(f'no block is named {name!r}; the names are {", ".join(map(repr, BLOCKS))}')
    for option in options:
        if option not in BLOCKS[name].options:
            raise UserError(
                f'{name} has no option {option!r}; '
                f'it has {", ".join(map(repr, BLOCKS[name].options))}'
            )
    return BLOCKS[name], options
