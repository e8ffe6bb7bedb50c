"""The three forms of a checkpoint, told apart by their keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..convs import ReparamConv2d, squeeze, switch_to_deploy
from ..convs.convert.squeezing import foldable_norms
from ..convs.finite import first_fault
from ..errors import UserError
from .state_dict import misfit, unusable

#: The forms in the order in which one becomes the next, with what turns a model into each.
FORMS = dict(training=lambda model: model, squeezed=squeeze, deploy=switch_to_deploy)


def form_of(model: nn.Module) -> str:
    """The form a model is in.

    Args:
        model (nn.Module): Any model.

    Returns:
        str: ``'training'`` if it has blocks, else ``'squeezed'`` if it has BatchNorms to be
        folded, as a plain network has, else ``'deploy'``.
    """
    if any(isinstance(module, ReparamConv2d) for module in model.modules()):
        return 'training'
    return 'squeezed' if any(foldable_norms(model)) else 'deploy'


def load_any_form(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str = 'the checkpoint'
) -> str:
    """Load a state dict of any form, strictly, after bringing the model into that form.

    Args:
        model (nn.Module): In the training form, as its config builds it. Changed in place; its
            weights are of no use after an error.
        state_dict (Mapping[str, Tensor]): Training, squeezed or deploy form.
        source (str): What to call the state dict in an error.

    Returns:
        str: The form, see :func:`form_of`.

    Raises:
        UserError: If no form fits; names the first missing and the first unexpected key. If it is
            no state dict of dense tensors, or its weights are not all finite.
    """
    if reason := unusable(state_dict):
        raise UserError(f'{source} is no state_dict of tensors: it has {reason}')
    nearest, shared = '', -1
    for change in FORMS.values():
        change(model)
        wanted = model.state_dict()
        difference = misfit(wanted, state_dict)
        if not difference:
            model.load_state_dict(state_dict)
            refuse_non_finite(model, source)
            return form_of(model)
        # The form that has most keys in common is the one the checkpoint was meant for.
        if len(wanted.keys() & state_dict.keys()) > shared:
            nearest, shared = difference, len(wanted.keys() & state_dict.keys())
    raise UserError(f'{source} does not fit the model of this config: {nearest}')


def refuse_non_finite(model: nn.Module, source: str) -> None:
    """Refuse weights with which no output is a number.

    Args:
        model (nn.Module): With the weights in it.
        source (str): Where they come from.

    Raises:
        UserError: If a parameter, a statistic or a generated kernel is not finite; names the first.
    """
    if fault := first_fault(model):
        raise UserError(
            f'{source} has weights that are not finite, first {fault}: take an earlier checkpoint'
        )
