"""Checkpoints of the released code, JUGGHM/OREPA_CVPR2022, read and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...convs.finite import is_finite
from ...errors import UserError
from ..files import load_checkpoint
from ..state_dict import misfit, one_line, unusable
from .networks import OURS, THEIRS, Naming, Network, as_wanted, recognize

_WANTED = (
    'wanted a checkpoint of JUGGHM/OREPA_CVPR2022 or DingXiaoH/RepVGG, with keys from stage0.… '
    'to linear.…'
)


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A released checkpoint under the names of this package.

    Attributes:
        state_dict (dict[str, Tensor]): In the names of mmpretrain's ``ImageClassifier`` with a
            backbone of this package.
        network (Network): What it is; its ``model`` and ``backbone`` are the configs that build
            it, its ``config`` the file in ``configs/imagenet``, if there is one.
        meta (dict): What the file says beside its tensors: ``epoch``, if it does.
    """

    state_dict: dict[str, Tensor]
    network: Network
    meta: dict

    @property
    def architecture(self) -> str:
        """ARCH, as the release's ``-a`` has it."""
        return self.network.architecture

    @property
    def block(self) -> str:
        """TYPE, as the release's ``-t`` has it.

        The deploy forms of ``RepVGG`` and ``OREPA_VGG`` do not differ: this is ``'RepVGG'`` then.
        """
        return self.network.block

    @property
    def form(self) -> str:
        """``'training'`` or ``'deploy'``."""
        return self.network.form


def load_official(source: str | os.PathLike | Mapping) -> dict[str, Tensor]:
    """Read a released checkpoint of any architecture, block type and form.

    All three are told from the keys and shapes. Training checkpoints, with or without ``module.``
    in front of their keys, and the bare state dicts of deploy forms will do; so will those of
    DingXiaoH/RepVGG.

    Args:
        source (str | os.PathLike | Mapping): The file, or what is in it.

    Returns:
        dict[str, Tensor]: In the names of mmpretrain's ``ImageClassifier`` with a backbone of this
        package (``backbone.…``, ``head.fc.…``).

    Raises:
        UserError: As :func:`read_official` has it.
    """
    return read_official(source).state_dict


def read_official(source: str | os.PathLike | Mapping) -> OfficialCheckpoint:
    """As :func:`load_official`, but says what the checkpoint is as well.

    Raises:
        UserError: If the file cannot be read or holds more than tensors and plain values; if it is
            something else; if a key is missing or unexpected, a shape differs, or a buffer is not
            the constant that it has to be; if the release computes something that no network of
            this package does.
    """
    if isinstance(source, Mapping):
        name, checkpoint = 'the checkpoint', source
    else:
        name = str(source)
        try:
            checkpoint = load_checkpoint(source)
        except UserError as error:
            raise UserError(f'{error}; {_WANTED}') from None
    state_dict = _state_dict(checkpoint, name)
    network = recognize(state_dict, THEIRS)
    if network is None:
        raise UserError(f'{name} is {_other(state_dict)}; {_WANTED}')
    state_dict = _with_counters(network, state_dict)
    _check_fit(network, THEIRS, state_dict, name)
    if network.difference:
        raise UserError(f'{name} is not imported: {network.difference}')
    try:
        renamed = network.to_ours(state_dict)
    except UserError as error:
        raise UserError(f'{name}: {error}') from None
    for key, value in renamed.items():
        if not is_finite(value):
            raise UserError(f'{name} has weights that are not finite, first {key} in our names')
    epoch = checkpoint.get('epoch')
    return OfficialCheckpoint(renamed, network, dict(epoch=epoch) if type(epoch) is int else {})


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: a training form of this package under the names of the release.

    Buffers that the release stores and this package does not are computed. The row of ``vector``
    that the release never reads is zero.

    Args:
        state_dict (Mapping[str, Tensor]): Of an ``ImageClassifier`` with ``OREPAResNet``,
            ``OREPAResNeXt`` or ``OREPARepVGG``, in the training form.

    Returns:
        dict[str, Tensor]: Without ``module.`` in front of the keys.

    Raises:
        UserError: If the release has no such network.
    """
    return recognize_ours(state_dict).to_released(state_dict)


def recognize_ours(state_dict: Mapping[str, Tensor], source: str = 'the state dict') -> Network:
    """The released network that a state dict of this package is, in the training form.

    Args:
        state_dict (Mapping[str, Tensor]): See :func:`to_official`.
        source (str): What to call it in an error.

    Raises:
        UserError: If the release has no such network.
    """
    if reason := unusable(state_dict, needs_data=False):
        raise UserError(f'{source} is no state_dict of tensors: it has {reason}')
    network = recognize(state_dict, OURS)
    if network is None:
        raise UserError(
            f'{source} is {_other(state_dict)}; wanted a classifier of this package, with keys '
            'such as backbone.conv1.… or backbone.stem.…, and head.fc.weight'
        )
    if network.form == 'deploy':
        raise UserError(
            f'{source} is in deploy form: wanted the training form, out of which the '
            'release makes a deploy form of its own'
        )
    _check_fit(network, OURS, state_dict, source)
    if network.difference:
        raise UserError(f'{source} is not exported: {network.difference}')
    return network


def _state_dict(checkpoint: Mapping, name: str) -> dict[str, Tensor]:
    state_dict = checkpoint.get('state_dict', checkpoint)
    if reason := unusable(state_dict):
        raise UserError(f'{name} holds no state_dict of tensors: it has {reason}; {_WANTED}')
    return {key.removeprefix('module.'): value.detach() for key, value in state_dict.items()}


def _with_counters(network: Network, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """With BatchNorm's counters of batches, which torch stores since version 0.4.1, if all lack."""
    counters = [name for name in network.released_shapes() if name.endswith('num_batches_tracked')]
    if any(name in state_dict for name in counters):
        return state_dict
    return state_dict | {name: torch.zeros((), dtype=torch.long) for name in counters}


def _check_fit(
    network: Network, naming: Naming, state_dict: Mapping[str, Tensor], name: str
) -> None:
    difference = misfit(as_wanted(naming.shapes(network)), state_dict)
    if difference:
        raise UserError(
            f'{name} looks most like {network.architecture} with -t {network.block} in '
            f'{network.form} form, but does not fit it: {difference}'
        )


def _other(state_dict: Mapping[str, Tensor]) -> str:
    """What a state dict is that is not the one that was wanted."""
    first = one_line(next(iter(state_dict)))
    if any(key.startswith(('backbone.', 'head.')) for key in state_dict):
        return (
            f'a checkpoint of an OpenMMLab model ({first}, …), which needs no import: '
            'tools/train.py CONFIG --init FILE trains from it, tools/convert.py converts it'
        )
    if any(key.startswith('stage0.') for key in state_dict):
        return f'a checkpoint of the released code ({first}, …)'
    if {'layer1.0.conv1.weight', 'fc.weight'} <= state_dict.keys():
        return (
            f'a plain ResNet in the names of torchvision or timm ({first}, …), from which '
            'tools/train.py CONFIG --init FILE starts as it is'
        )
    return f'a state dict of something else ({first}, …)'
