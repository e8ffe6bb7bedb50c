"""The three forms of a checkpoint, told apart by their keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..convs import OREPAConv2d, squeeze, switch_to_deploy
from ..errors import UserError

#: What turns a model into each of its forms in turn, beginning with the one it is built in.
CHANGES = (lambda model: model, squeeze, switch_to_deploy)


def form_of(model: nn.Module) -> str:
    """The form a model is in.

    Args:
        model (nn.Module): Any model.

    Returns:
        str: ``'training'`` if it has OREPA blocks, else ``'squeezed'`` if it has BatchNorms, as a
        plain network has, else ``'deploy'``.
    """
    modules = list(model.modules())
    if any(isinstance(module, OREPAConv2d) for module in modules):
        return 'training'
    return 'squeezed' if any(isinstance(module, _BatchNorm) for module in modules) else 'deploy'


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
        UserError: If no form fits; names the first missing and the first unexpected key.
    """
    nearest, shared = '', -1
    for change in CHANGES:
        change(model)
        wanted = model.state_dict()
        misfit = _misfit(wanted, state_dict)
        if not misfit:
            model.load_state_dict(state_dict)
            return form_of(model)
        # The form that has most keys in common is the one the checkpoint was meant for.
        if len(wanted.keys() & state_dict.keys()) > shared:
            nearest, shared = misfit, len(wanted.keys() & state_dict.keys())
    raise UserError(f'{source} does not fit the model of this config: {nearest}')


def _misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from being loaded, on one line; nothing if nothing does."""
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    parts = []
    if missing:
        parts.append(f'{len(missing)} keys missing, first {missing[0]}')
    if unexpected:
        parts.append(f'{len(unexpected)} keys unexpected, first {unexpected[0]}')
    if reshaped:
        key = reshaped[0]
        parts.append(
            f'{len(reshaped)} shapes differ, first {key} with {tuple(found[key].shape)} '
            f'where {tuple(wanted[key].shape)} is wanted'
        )
    return '; '.join(parts)
