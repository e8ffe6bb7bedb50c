"""From a config and a checkpoint to a model in the form that is asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..errors import UserError, explained_building
from .files import load_checkpoint
from .forms import FORMS, load_any_form, refuse_non_finite


@dataclass(frozen=True)
class Loaded:
    """A model with the weights of a checkpoint.

    Attributes:
        model (nn.Module): The model, on the CPU and in eval mode.
        form (str): The form that the checkpoint was in: ``'training'``, ``'plain'`` or
            ``'deploy'``.
        checkpoint (Mapping): All that was read, with ``state_dict`` and ``meta``.
    """

    model: nn.Module
    form: str
    checkpoint: Mapping[str, Any]

    @property
    def is_average(self) -> bool:
        """Whether the weights are the moving average of MMEngine's EMAHook."""
        return 'ema_state_dict' in self.checkpoint


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, on the CPU and in eval mode, with its library's scope as default.

    Raises:
        UserError: If the config does not build.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    with explained_building(str(cfg.filename or 'the config')):
        return MODELS.build(model_cfg).eval()


def load_model(
    cfg: Config,
    checkpoint: str | os.PathLike,
    form: str | None = None,
) -> Loaded:
    """Build the model of a config, load a checkpoint, and bring it into a form.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        checkpoint (str | os.PathLike): The checkpoint, in any form.
        form (str, optional): The form that is wanted: ``'training'``, ``'plain'`` or
            ``'deploy'``. By default the checkpoint's own.

    Returns:
        Loaded: The model, and what was read.

    Raises:
        UserError: If the checkpoint cannot be read, does not fit the config, is in a form that does
            not become the one that is asked for, or has weights that are not finite, in its own
            form or in that one.
    """
    # A wrong file is told before a model is built.
    content = load_checkpoint(checkpoint)
    return _in_form(build_model(cfg), checkpoint, content, form)


def load_form(model: nn.Module, checkpoint: str | os.PathLike, form: str | None = None) -> Loaded:
    """Do as :func:`load_model` with a model that is built.

    Args:
        model (nn.Module): The model as its config builds it. It is changed in place.
        checkpoint (str | os.PathLike): The checkpoint, in any form.
        form (str, optional): The form that is wanted, as for :func:`load_model`.

    Returns:
        Loaded: The model, and what was read.

    Raises:
        UserError: As for :func:`load_model`.
    """
    return _in_form(model, checkpoint, load_checkpoint(checkpoint), form)


def _in_form(model, checkpoint, content, form) -> Loaded:
    found = load_any_form(model, content['state_dict'], str(checkpoint))
    if form is not None:
        order = list(FORMS)
        if order.index(found) > order.index(form):
            lost = 'BatchNorms are folded' if found == 'deploy' else 'generated kernels are gone'
            raise UserError(
                f'{checkpoint} is in {found} form, its {lost}: give the checkpoint that it was '
                f'converted from to get the {form} form'
            )
        if found != form:
            FORMS[form](model)
            refuse_non_finite(model, f'{checkpoint} in {form} form')
    return Loaded(model, found, content)
