"""The float network that is to be quantized: in deploy form, and every weight a finite number."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...checkpoints import Loaded, load_checkpoint, load_model
from ...errors import UserError
from .qat import folded, is_qat, load_qat

#: Types that no checkpoint of ours has before it is quantized.
INT8 = (torch.int8, torch.qint8, torch.quint8)


def load_float(cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
    """The deploy form of a checkpoint.

    Args:
        cfg (Config): The config it was trained with.
        checkpoint (str | os.PathLike): Training, squeezed or deploy form; of a config with
            ``QATForm``, what that trained.

    Returns:
        nn.Module: On the CPU, in eval mode.

    Raises:
        UserError: If the checkpoint is in int8 already, cannot be read, does not fit, or has a
            weight that is not finite.
    """
    if is_qat(cfg):
        model = folded(load_qat(cfg, checkpoint), cfg)
    else:
        model = load_float_form(cfg, checkpoint, 'deploy').model
    check_finite(model, checkpoint)
    return model


def load_float_form(cfg: Config, checkpoint: str | os.PathLike, form: str | None = None) -> Loaded:
    """:func:`mmorepa.checkpoints.load_model` for a checkpoint that is not in int8.

    Raises:
        UserError: If it is, or as there.
    """
    refuse_exported(checkpoint)
    content = load_checkpoint(checkpoint)
    refuse_int8(content['state_dict'], checkpoint)
    return load_model(cfg, checkpoint, form, content)


def refuse_int8(state_dict: Mapping[str, Tensor], checkpoint: str | os.PathLike) -> None:
    """Raise a :class:`UserError` for a state dict with quantized weights."""
    for key, value in state_dict.items():
        if value.dtype in INT8:
            raise UserError(
                f'{checkpoint} is in int8 already, {key} has {value.dtype}: '
                'give the float checkpoint that it was made from'
            )


def refuse_exported(checkpoint: str | os.PathLike) -> None:
    """Raise a :class:`UserError` for an ONNX or TorchScript file, which has no state dict."""
    path = Path(checkpoint)
    exported = path.suffix == '.onnx'
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            exported |= any(name.endswith('/constants.pkl') for name in archive.namelist())
    if exported:
        raise UserError(
            f'{path} is an exported or int8 model, no checkpoint: '
            'give the float checkpoint that it was made from'
        )


def check_finite(model: nn.Module, source: str | os.PathLike) -> None:
    """Raise a :class:`UserError` that names the first parameter that is not finite, if one is."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            bad = (~parameter.isfinite()).sum().item()
            raise UserError(
                f'{source}: {name} has {bad} numbers that are not finite in deploy form, which no '
                'scale fits: take an earlier checkpoint'
            )
