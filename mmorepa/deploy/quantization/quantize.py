"""From a config and a float checkpoint to an int8 file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config
from torch import nn

from ...checkpoints.conversion import count_bytes
from ...checkpoints.files import written_whole
from ...engine.data import seed_of
from ...errors import UserError
from .calibration import calibration_images
from .evaluation import TestSet
from .executor import open_int8, replaced_network
from .float_model import load_float
from .onnxruntime_backend import quantize_onnx
from .qat import int8_qat_backbone, is_qat, load_qat
from .settings import Settings
from .torch_backend import quantize_torch, save_script


@dataclass(frozen=True)
class Quantized:
    """What a quantization did.

    Attributes:
        out (Path): The int8 file.
        settings (Settings): How it was made.
        trained (bool): Whether the ranges are those of quantization-aware training; nothing was
            calibrated then.
        calibration (int): Images seen.
        seed (int): That drew them.
        bytes (tuple[int, int]): Of the float weights in memory, and of the int8 file.
        metrics (tuple[dict, dict], optional): Of the test set, in float and int8.
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
    """Write the int8 form of a checkpoint, and what is known of it as JSON beside it.

    Args:
        cfg (Config): The training config, from ``load_config``. With ``QATForm`` and backend
            ``'torch'`` the ranges are those that training found.
        checkpoint (str | os.PathLike): Training, squeezed or deploy form.
        out (str | os.PathLike): The file, ``.onnx`` or ``.pt`` by backend; see
            :func:`mmorepa.deploy.quantization.open_int8`. The JSON gets its name with ``.json``.
        settings (Settings, optional): By default ONNX Runtime, static, per channel.
        calibration (int): Images of the training set on which ranges are found. Defaults to 256.
        evaluate (bool): Evaluate the float and the int8 form on the test set. Defaults to False.
        force (bool): Replace an existing file. Defaults to False.

    Returns:
        Quantized: What was done.

    Raises:
        UserError: If the file exists already, the checkpoint does not fit, is in int8 already or
            has a weight that is not finite, or the config lacks the data.
        ImportError: If onnx or onnxruntime is wanted and not installed.
    """
    settings, out = settings or Settings(), Path(out)
    settings.check_out(out, force)
    # Before minutes of calibration.
    tests = TestSet(cfg) if evaluate else None
    model = load_float(cfg, checkpoint)
    trained = settings.backend == 'torch' and is_qat(cfg)
    # One image gives the export its size.
    wanted = 1 if trained or settings.mode == 'dynamic' else calibration
    batches = calibration_images(cfg, model, wanted)
    if settings.backend == 'onnxruntime':
        quantize_onnx(model, out, settings, batches[0], batches)
    elif trained:
        backbone = int8_qat_backbone(load_qat(cfg, checkpoint))
        save_script(model, backbone, out, batches[0])
    else:
        require_backbone(model)
        quantize_torch(model, out, settings, batches)
    done = Quantized(
        out=out,
        settings=settings,
        trained=trained,
        calibration=0 if wanted < calibration else sum(map(len, batches)),
        seed=seed_of(cfg),
        bytes=(count_bytes(model), out.stat().st_size),
        metrics=compare(model, out, tests) if tests else None,
    )
    write_json(done)
    return done


def compare(model: nn.Module, out: Path, tests: TestSet) -> tuple[dict, dict]:
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


def write_json(done: Quantized) -> None:
    """Write what is known beside the int8 file."""
    content = dict(asdict(done), out=done.out.name)
    with written_whole(done.out.with_suffix('.json')) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n')
