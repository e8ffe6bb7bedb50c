"""From a config and a float checkpoint to an int8 file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config
from torch import nn

from ...checkpoints import load_model
from ...checkpoints.conversion import count_bytes
from ...engine.data import seed_of
from ...errors import UserError
from ...writing import check_out, write_json
from .calibration import calibration_images, sample_image
from .evaluation import TestSet
from .executor import open_int8, replaced_network
from .onnxruntime_backend import quantize_onnx
from .qat import int8_qat_backbone, is_qat, load_float
from .settings import Settings
from .torch_backend import quantize_torch, save_script


@dataclass(frozen=True)
class Quantized:
    """What a quantization did.

    Attributes:
        out (Path): The int8 file.
        settings (Settings): How the file was made. The JSON file has no ``method`` if ``trained``.
        trained (bool): Whether quantization-aware training found the ranges. Nothing was calibrated
            then.
        calibration (int): The number of calibration images.
        seed (int): The seed that drew the images.
        bytes (tuple[int, int]): The size of the float weights in memory, and of the int8 file.
        metrics (tuple[dict, dict], optional): The test set's metrics, in float and in int8.
    """

    out: Path
    settings: Settings
    trained: bool
    calibration: int
    seed: int
    bytes: tuple[int, int]
    metrics: tuple[dict[str, float], dict[str, float]] | None = None


def quantize(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings | None = None,
    calibration: int = 256,
    evaluate: bool = False,
    force: bool = False,
) -> Quantized:
    """Write the int8 form of a checkpoint, and a JSON file beside it that says how it was made.

    Args:
        cfg (Config): The training config, from ``load_config``. With ``QATForm`` and backend
            ``'torch'`` the ranges are those that training found.
        checkpoint (str | os.PathLike): The checkpoint, in training, plain or deploy form.
        out (str | os.PathLike): The file to write. Its ending is that of the backend, ``.onnx`` or
            ``.pt``; :func:`mmorepa.deploy.quantization.open_int8` reads it. The JSON file has this
            name and ``.json`` behind it.
        settings (Settings, optional): How to quantize. By default with ONNX Runtime, static, per
            channel.
        calibration (int): The number of images of the training set on which ranges are found.
            Defaults to 256. None are read if nothing is calibrated.
        evaluate (bool): Whether to evaluate the float and the int8 form on the test set. Defaults
            to False.
        force (bool): Whether to replace existing files. Defaults to False.

    Returns:
        Quantized: What was done.

    Raises:
        UserError: If ``settings`` has what training chose; if ``out`` has another ending; if one
            of both files is an input or exists already; if the checkpoint does not fit, is in int8
            already or has weights that are not finite; or if the config lacks the data.
        ImportError: If onnx or onnxruntime is wanted and not installed.
    """
    settings = settings or Settings()
    trained = settings.backend == 'torch' and is_qat(cfg)
    if trained and settings != Settings('torch'):
        raise UserError(
            'with QATForm and backend torch training chose the scales and ranges: leave method '
            'and per_channel (--method, --per-tensor) out'
        )
    what = f'what backend {settings.backend} writes'
    inputs = [checkpoint, cfg.filename]
    out = check_out(out, inputs, force, settings.suffix, what, done='quantized')
    record = check_out(f'{out}.json', inputs, force, done='quantized')
    # Before minutes of calibration.
    tests = TestSet(cfg) if evaluate else None
    model = load_float(cfg, checkpoint)
    calibrates = settings.mode == 'static' and not trained
    if calibrates:
        batches = calibration_images(cfg, model, calibration)
    else:
        batches = [sample_image(cfg, model)]
    if settings.backend == 'onnxruntime':
        quantize_onnx(model, out, settings, batches[0], batches)
    elif trained:
        backbone = int8_qat_backbone(load_model(cfg, checkpoint).model)
        save_script(model, backbone, out, batches[0])
    else:
        require_backbone(model)
        quantize_torch(model, out, settings, batches)
    done = Quantized(
        out=out,
        settings=settings,
        trained=trained,
        calibration=sum(map(len, batches)) if calibrates else 0,
        seed=seed_of(cfg),
        bytes=(count_bytes(model), out.stat().st_size),
        metrics=evaluate_both(model, out, tests) if tests else None,
    )
    content = dict(asdict(done), out=out.name)
    content['settings']['per_channel_convolutions'] = settings.per_channel_convolutions
    if trained:
        content['settings']['method'] = None
    write_json(content, record)
    return done


def evaluate_both(model: nn.Module, out: Path, tests: TestSet) -> tuple[dict, dict]:
    """The metrics of a float model, and those with an int8 file in the place of its network."""
    before = tests.evaluate(model)
    with replaced_network(model, open_int8(out)):
        return before, tests.evaluate(model)


def require_backbone(model: nn.Module) -> None:
    """Raise a :class:`UserError` if a model has no backbone, which is what torch quantizes."""
    if not hasattr(model, 'backbone'):
        raise UserError(
            f'{type(model).__name__} has no backbone, which is what backend torch quantizes: '
            'choose backend onnxruntime'
        )
