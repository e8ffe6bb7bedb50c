"""The three forms of a checkpoint, told apart by their keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..convs import ReparamConv2d, squeeze, switch_to_deploy
from ..convs.convert.squeezing import foldable_norms
from ..convs.finite import first_fault
from ..errors import UserError
from .state_dict import misfit, unusable

#: The forms in the order in which one becomes the next, with what turns a model into each.
FORMS = dict(training=lambda model: model, plain=squeeze, deploy=switch_to_deploy)

#: What follows from a tensor too many or too few.
ANOTHER = (
    'so that it is in another form than this config: take the two that tools/convert.py wrote '
    'together, or tools/test.py, which finds the form out'
)


def form_of(model: nn.Module) -> str:
    """The form a model is in.

    Args:
        model (nn.Module): Any model.

    Returns:
        str: ``'training'`` if it has blocks, else ``'plain'`` if it has BatchNorms to be
        folded, as a plain network has, else ``'deploy'``.
    """
    if any(isinstance(module, ReparamConv2d) for module in model.modules()):
        return 'training'
    return 'plain' if any(foldable_norms(model)) else 'deploy'


def load_any_form(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str = 'the checkpoint'
) -> str:
    """Load a state dict of any form, strictly, after bringing the model into that form.

    Args:
        model (nn.Module): The model in training form, as its config builds it. It is changed in
            place, and its weights are of no use after an error.
        state_dict (Mapping[str, Tensor]): The training, plain or deploy form.
        source (str): What to call the state dict in an error.

    Returns:
        str: The form, see :func:`form_of`.

    Raises:
        UserError: If no form fits; the message names the first missing and the first unexpected
            key. Also if it is no state dict of dense tensors, it is in int8, or its weights are not
            all finite.
    """
    if reason := unusable(state_dict):
        raise UserError(f'{source} is no state_dict of tensors: it has {reason}')
    nearest, shared, keys = '', -1, set()
    for change in FORMS.values():
        change(model)
        wanted = model.state_dict()
        keys |= wanted.keys()
        difference = misfit(wanted, state_dict)
        if not difference:
            model.load_state_dict(state_dict)
            refuse_non_finite(model, source)
            return form_of(model)
        # The form that has most keys in common is the one the checkpoint was meant for.
        if len(wanted.keys() & state_dict.keys()) > shared:
            nearest, shared = difference, len(wanted.keys() & state_dict.keys())
    for key, value in state_dict.items():
        if value.dtype == torch.int8:
            raise UserError(
                f'{source} is in int8 already, {key} has {value.dtype}: '
                'give the float checkpoint that it was made from'
            )
    own = sum(f'backbone.{key}' in keys for key in state_dict)
    if 2 * own > len(state_dict):
        raise UserError(
            f'{source} has the names of a backbone alone, such as a network from torchvision: '
            'wanted a whole model; to train from it, tools/train.py CONFIG --init FILE'
        )
    raise UserError(f'{source} does not fit the model of this config: {nearest}')


def refuse_other_forms(
    model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *args
) -> None:
    """Refuse a state dict in another form: a hook for ``register_load_state_dict_pre_hook``.

    Loaders that are not strict, as those of OpenMMLab's inferencers are, would leave out a bias or
    the branches, and the network would compute something else.

    Args:
        model (nn.Module): A model in plain or deploy form.
        state_dict (Mapping[str, Tensor]): The state dict.
        prefix (str): The prefix of the model's names there.
        args: What else a hook gets.

    Raises:
        UserError: If a convolution has other tensors there than in the model, except zeros, or
            the model lacks a BatchNorm that is there.
    """
    modules, buffers = dict(model.named_modules()), dict(model.named_buffers())
    for key in state_dict:
        name = key.removeprefix(prefix)
        if name.endswith('.running_mean') and name not in buffers:
            if name.rpartition('.')[0] in modules:  # where the BatchNorm was
                raise UserError(f'the checkpoint has {key}, {ANOTHER}')
    for name, module in modules.items():
        if type(module) is not nn.Conv2d:
            continue
        conv = f'{prefix}{name}.'
        found = {key for key in state_dict if key.startswith(conv)}
        if not found:
            continue
        expected = {f'{conv}{key}' for key in module.state_dict()}
        more = [key for key in found - expected if state_dict[key].any()]
        if more or expected - found:
            wrong = f'has {more[0]}' if more else f'lacks {min(expected - found)}'
            raise UserError(f'the checkpoint {wrong}, {ANOTHER}')


def refuse_non_finite(model: nn.Module, source: str) -> None:
    """Refuse weights with which no output is a number.

    Args:
        model (nn.Module): The model with the weights.
        source (str): Where the weights come from, for the message.

    Raises:
        UserError: If a parameter, a statistic or a generated kernel is not finite; the message
            names the first.
    """
    if fault := first_fault(model):
        raise UserError(
            f'{source} has weights that are not finite, first {fault}: take an earlier checkpoint'
        )
