"""The float network that is to be quantized: in deploy form, and every weight a finite number."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...checkpoints import load_any_form, load_checkpoint
from ...checkpoints.conversion import build_model
from ...convs import switch_to_deploy
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
        state_dict = read_float(checkpoint)
        model = build_model(cfg)
        load_any_form(model, state_dict, str(checkpoint))
        switch_to_deploy(model)
    check_finite(model, checkpoint)
    return model


def read_float(checkpoint: str | os.PathLike) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint that is not in int8.

    Raises:
        UserError: If it is, or cannot be read.
    """
    refuse_exported(checkpoint)
    state_dict = load_checkpoint(checkpoint)['state_dict']
    for key, value in state_dict.items():
        if value.dtype in INT8:
            raise UserError(
                f'{checkpoint} is in int8 already, {key} has {value.dtype}: '
                'give the float checkpoint that it was made from'
            )
    return state_dict


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
