"""Int8 ONNX files, by ONNX Runtime's own quantization tools."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ...engine.quiet import logging_at
from ...writing import written_whole
from ..export import FormatOptions, TensorModel, write_onnx
from ..export.onnx_file import needed
from .settings import Settings


def quantize_onnx(
    model: nn.Module,
    path: str | os.PathLike,
    settings: Settings,
    sample: Tensor,
    calibration: Sequence[Tensor] = (),
) -> None:
    """Write a model's network as an int8 ONNX file.

    The network is what :class:`mmorepa.deploy.export.TensorModel` makes of the model.

    Static quantization gives QDQ nodes, uint8 activations and int8 weights. Dynamic quantization
    gives ``ConvInteger`` and ``MatMulInteger``, whose weights are uint8, as ONNX Runtime's kernels
    want them. Its quantizer gives the weight of a ``ConvInteger`` one scale, whatever
    ``per_channel`` says.

    Args:
        model (nn.Module): A model in deploy form.
        path (str | os.PathLike): The file, which is written whole or not at all.
        settings (Settings): Settings of backend ``'onnxruntime'``.
        sample (Tensor): An input for the export, (N, 3, H, W).
        calibration (Sequence[Tensor]): Batches of images for static quantization.

    Raises:
        UserError: If the network has an operator that ONNX lacks.
        ImportError: If onnx or onnxruntime is not installed.
    """
    needed('onnx')
    needed('onnxruntime')
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # ONNX Runtime writes hints to the root logger.
    hints = logging_at(logging.ERROR, logging.getLogger())
    with tempfile.TemporaryDirectory() as folder, written_whole(path) as out, hints:
        plain, prepared = Path(folder, 'float.onnx'), Path(folder, 'prepared.onnx')
        write_onnx(TensorModel(model), plain, sample, FormatOptions())
        # Shapes are left to ONNX's own inference: the symbolic one gives up on some heads.
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        if settings.mode == 'dynamic':
            quantize_dynamic(
                prepared,
                out,
                per_channel=settings.per_channel,
                reduce_range=settings.reduce_range,
                weight_type=QuantType.QUInt8,
            )
            return
        quantize_static(
            prepared,
            out,
            _reader(calibration),
            per_channel=settings.per_channel,
            reduce_range=settings.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_method(settings.method),
            # One batch after the other: batches may differ in size, and memory stays bounded.
            extra_options=dict(CalibStridedMinMax=1),
        )


def _method(name: str):
    from onnxruntime.quantization import CalibrationMethod

    return dict(
        minmax=CalibrationMethod.MinMax,
        entropy=CalibrationMethod.Entropy,
        percentile=CalibrationMethod.Percentile,
    )[name]


def _reader(batches: Sequence[Tensor]):
    """ONNX Runtime's interface to calibration batches."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.set_range(0, len(batches))

        def __len__(self):
            return len(batches)

        def set_range(self, start_index: int, end_index: int):
            self.left = iter(batches[start_index:end_index])

        def get_next(self):
            batch = next(self.left, None)
            return None if batch is None else dict(image=batch.numpy())

    return Reader()
