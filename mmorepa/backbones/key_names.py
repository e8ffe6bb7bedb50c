"""Renaming the tensors of a backbone from the names that other libraries give them."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ..convs.convert.plain import known_names, refuse_folded, without_biases
from ..errors import UserError

#: mmpretrain's names for the convolutions and BatchNorms of a deep stem, by their positions in the
#: sequence that mmdet and mmseg have.
_PLACES = {0: '0.conv', 1: '0.bn', 3: '1.conv', 4: '1.bn', 6: '2.conv', 7: '2.bn'}
#: In timm the deep stem is a sequence that does not contain its last BatchNorm.
_FROM_TIMM = [(r'^conv1\.(\d)\.', r'stem.\1.'), (r'^bn1\.', 'stem.7.')]
_TO_MMPRETRAIN = [(rf'^stem\.{place}\.', f'stem.{name}.') for place, name in _PLACES.items()]
_FROM_MMPRETRAIN = [
    (rf'^stem\.{re.escape(name)}\.', f'stem.{place}.') for place, name in _PLACES.items()
]
#: mmpretrain's RepVGG in its three-branch form. The first branch is a block or a convolution.
_THREE_BRANCHES = [
    (r'branch_3x3\.norm\.', 'branch_reparam.original.norm.'),
    (r'branch_1x1\.conv\.', 'branch_reparam.pointwise.'),
    (r'branch_1x1\.norm\.', 'branch_reparam.pointwise.norm.'),
    (r'branch_norm\.', 'branch_reparam.identity.norm.'),
]
_GENERATED = [*_THREE_BRANCHES, (r'branch_3x3\.conv\.', 'branch_reparam.original.conv.')]
_CONVOLVED = [*_THREE_BRANCHES, (r'branch_3x3\.conv\.', 'branch_reparam.original.')]

#: Before the first shortcut, whose stride is one, mmpretrain has no average. Others have a 1x1 one.
_NO_AVERAGE = [(rf'^layer1\.0\.downsample\.{i}\.', f'layer1.0.downsample.{i - 1}.') for i in (1, 2)]
_AVERAGE = [(rf'^layer1\.0\.downsample\.{i}\.', f'layer1.0.downsample.{i + 1}.') for i in (1, 0)]

#: Each renaming is a list of patterns and replacements, which are applied in order.
RENAMINGS = [
    [(re.compile(pattern), replacement) for pattern, replacement in renaming]
    for renaming in (
        [],
        _FROM_TIMM,
        [*_FROM_TIMM, *_TO_MMPRETRAIN],
        [*_FROM_TIMM, *_TO_MMPRETRAIN, *_NO_AVERAGE],
        _TO_MMPRETRAIN,
        [*_TO_MMPRETRAIN, *_NO_AVERAGE],
        _FROM_MMPRETRAIN,
        [*_FROM_MMPRETRAIN, *_AVERAGE],
        _GENERATED,
        _CONVOLVED,
    )
]


def named_for(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename a state dict to the names of a model, and refuse a deploy form.

    Args:
        model (nn.Module): A backbone, or a model around one, with blocks in training form.
        state_dict (Mapping[str, Tensor]): The state dict of either.
        source (str): The name of the checkpoint in error messages.

    Returns:
        dict[str, Tensor]: All tensors. Those that the model does not know keep their names. A bias
        in front of a BatchNorm is in its running mean.

    Raises:
        UserError: If BatchNorms are folded where the model has blocks.
    """
    found = without_biases(model, named_as(state_dict, known_names(model)))
    try:
        refuse_folded(model, found)
    except UserError as error:
        raise UserError(f'{source}: {error}') from None
    return found


def named_as(state_dict: Mapping[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Rename a state dict to a backbone's names, with the renaming that gives most known names.

    Args:
        state_dict (Mapping[str, Tensor]): The state dict of a backbone, or of a model around one.
        known (set[str]): The names that the backbone knows.

    Returns:
        dict[str, Tensor]: All tensors. Those of other parts of the model keep their names.
    """
    return max(candidates(state_dict, known), key=lambda renamed: len(renamed.keys() & known))


def candidates(state_dict: Mapping[str, Tensor], known: set[str]) -> Iterator[dict[str, Tensor]]:
    """A state dict under each renaming, less the prefix that gives most known names."""
    for renaming in RENAMINGS:
        prefix = likeliest_prefix(state_dict, known, renaming)
        yield {
            rename(key.removeprefix(prefix), renaming) if key.startswith(prefix) else key: value
            for key, value in state_dict.items()
        }


def likeliest_prefix(state_dict: Mapping[str, Tensor], known: set[str], renaming: list) -> str:
    """The prefix that most of a backbone's names have, such as ``'backbone.'`` or none."""
    found = Counter({'': 0})
    is_known = functools.cache(lambda name: rename(name, renaming) in known)
    for key in state_dict:
        parts = key.split('.')
        for i in range(len(parts)):
            if is_known('.'.join(parts[i:])):
                found[''.join(f'{part}.' for part in parts[:i])] += 1
    return max(found, key=found.get)


def rename(key: str, renaming: list) -> str:
    """Apply a renaming to a name."""
    for pattern, replacement in renaming:
        key = pattern.sub(replacement, key)
    return key
