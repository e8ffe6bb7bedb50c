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

from ..errors import UserError
from .files import load_checkpoint
from .forms import FORMS, load_any_form


@dataclass(frozen=True)
class Loaded:
    """A model with the weights of a checkpoint.

    Attributes:
        model (nn.Module): On the CPU, in eval mode.
        form (str): The form that the checkpoint was in: ``'training'``, ``'squeezed'`` or
            ``'deploy'``.
        checkpoint (Mapping): What was read, its ``state_dict`` and ``meta`` among it.
    """

    model: nn.Module
    form: str
    checkpoint: Mapping[str, Any]

    @property
    def is_average(self) -> bool:
        """Whether the weights are the moving average of MMEngine's EMAHook."""
        return 'ema_state_dict' in self.checkpoint


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, on the CPU and in eval mode, with its library's scope as default."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model_cfg).eval()


def load_model(
    cfg: Config,
    checkpoint: str | os.PathLike,
    form: str | None = None,
    content: Mapping[str, Any] | None = None,
) -> Loaded:
    """Build the model of a config, load a checkpoint, and bring it into a form.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg.
        checkpoint (str | os.PathLike): In any form.
        form (str, optional): ``'training'``, ``'squeezed'`` or ``'deploy'``. By default the
            checkpoint's own.
        content (Mapping, optional): What is in the checkpoint, if it was read already.

    Returns:
        Loaded: The model with what was loaded.

    Raises:
        UserError: If the checkpoint cannot be read, does not fit the config, or is in a form that
            does not become the one that is asked for.
    """
    content = load_checkpoint(checkpoint) if content is None else content
    return load_form(build_model(cfg), checkpoint, form, content)


def load_form(
    model: nn.Module,
    checkpoint: str | os.PathLike,
    form: str | None = None,
    content: Mapping[str, Any] | None = None,
) -> Loaded:
    """Do as :func:`load_model` with a model that is built.

    Args:
        model (nn.Module): As its config builds it. It is changed in place.
        checkpoint (str | os.PathLike): As there, like ``form`` and ``content``.
        form (str, optional): See ``checkpoint``.
        content (Mapping, optional): See ``checkpoint``.

    Returns:
        Loaded: The model with what was loaded.

    Raises:
        UserError: As there.
    """
    content = load_checkpoint(checkpoint) if content is None else content
    found = load_any_form(model, content['state_dict'], str(checkpoint))
    if form is not None:
        order = list(FORMS)
        if order.index(found) > order.index(form):
            lost = 'BatchNorms are folded' if found == 'deploy' else 'generated kernels are gone'
            raise UserError(
                f'{checkpoint} is in {found} form, its {lost}: give the checkpoint that it was '
                f'converted from to get the {form} form'
            )
        FORMS[form](model)
    return Loaded(model, found, content)
