"""Int8 TorchScript files, by torch.ao's FX graph mode.

The backbone becomes int8 and runs torch's int8 kernels eagerly. Neck and head stay in float. torch
2.5 has a second way, PT2 export with ``X86InductorQuantizer``. Its program imitates int8 in float
until it is compiled with a C++ compiler on the machine that runs it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_weight_observer,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from ...engine.quiet import quiet_torch
from ...writing import written_whole
from ..export import TensorModel
from .backbone_graph import traced
from .settings import Settings


def quantize_torch(
    model: nn.Module,
    path: str | os.PathLike,
    settings: Settings,
    calibration: Sequence[Tensor],
) -> None:
    """Write a model's network, its backbone in int8, as a TorchScript program.

    Args:
        model (nn.Module): A model in deploy form that has a ``backbone``.
        path (str | os.PathLike): The file, which is written whole or not at all.
        settings (Settings): Settings of backend ``'torch'``.
        calibration (Sequence[Tensor]): Batches of calibration images.

    Raises:
        UserError: If the backbone cannot be traced.
    """
    backbone = int8_backbone(model.backbone, settings, calibration)
    save_script(model, backbone, path, calibration[0])


def int8_backbone(
    backbone: nn.Module, settings: Settings, calibration: Sequence[Tensor]
) -> fx.GraphModule:
    """Quantize a backbone in deploy form after running it on calibration batches.

    Args:
        backbone (nn.Module): The backbone. It is the same afterwards.
        settings (Settings): ``method`` and ``per_channel`` are used.
        calibration (Sequence[Tensor]): Batches of calibration images.

    Returns:
        fx.GraphModule: The backbone in int8. Its inputs and outputs are float tensors.
    """
    with quiet_torch(), torch.no_grad():
        prepared = prepare_fx(traced(backbone).eval(), qconfigs(settings), (calibration[0],))
        for batch in calibration:
            prepared(batch)
        return convert_fx(prepared)


def qconfigs(settings: Settings) -> QConfigMapping:
    """torch's default rules for this machine's engine, with the observers of ``settings``."""
    mapping = get_default_qconfig_mapping(torch.backends.quantized.engine)
    default = mapping.global_qconfig
    observer = dict(histogram=HistogramObserver, minmax=MinMaxObserver)[settings.method]
    # The x86 kernels may saturate without VNNI, so that torch's default leaves one bit out.
    reduce_range = default.activation().reduce_range
    return mapping.set_global(
        QConfig(
            activation=observer.with_args(reduce_range=reduce_range),
            weight=default.weight if settings.per_channel else default_weight_observer,
        )
    )


def save_script(
    model: nn.Module, backbone: nn.Module, path: str | os.PathLike, sample: Tensor
) -> None:
    """Trace a model's network with another backbone, and write it, whole or not at all.

    Args:
        model (nn.Module): The model. It is the same afterwards.
        backbone (nn.Module): The backbone that takes the place of the model's own.
        path (str | os.PathLike): The file.
        sample (Tensor): An input, (N, 3, H, W).
    """
    model = copy.copy(model)
    model._modules = dict(model._modules, backbone=backbone)
    with quiet_torch(), torch.no_grad(), written_whole(path) as temporary:
        # A trace of int8 modules cannot be compared with itself to the last digit.
        script = torch.jit.trace(TensorModel(model), sample, check_trace=False)
        # Not by its name: torch would abort where the disk is full.
        with open(temporary, 'wb') as file:
            torch.jit.save(script, file)
