"""Converting a training checkpoint to its plain or deploy form."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config_files import bases_of, text_of
from ..config_types import PRETRAINED, is_of_type
from ..convs import Agreement, ReparamConv2d, squeeze, switch_to_deploy
from ..convs.convert.squeezing import TOLERANCE
from ..errors import UserError
from ..version import __version__
from ..writing import check_out, written_whole
from .comparing import compare_forms, input_channels, probe_image
from .files import save_checkpoint
from .models import load_model


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source_form (str): The form of the checkpoint that was read.
        form (str): The form of the one that was written, ``'plain'`` or ``'deploy'``.
        blocks (int): Blocks squeezed.
        norms (int): BatchNorms folded, those inside of blocks included.
        parameters (tuple[int, int]): Parameters of the model, before and after.
        bytes (tuple[int, int]): Size of the state dict in memory, before and after.
        ema (bool): Whether the weights are the exponential moving average that MMEngine's EMAHook
            keeps; it saves them as the checkpoint's ``state_dict``.
        agreement (Agreement): Of both forms' outputs for the probe image.
        out (Path): The checkpoint written.
        config (Path): The config written beside it.
    """

    source_form: str
    form: str
    blocks: int
    norms: int
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    ema: bool
    agreement: Agreement
    out: Path
    config: Path


def convert(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    keep_bn: bool = False,
    force: bool = False,
    probe_size: int = 224,
) -> Conversion:
    """Write the plain or deploy form of a checkpoint, and a config that fits it beside it.

    ``meta`` is kept, with the form noted in it; optimizer state and the like are left out. The
    two forms are compared on a random image, and nothing is written unless they agree.

    Args:
        cfg (Config): The training config.
        checkpoint (str | os.PathLike): Any form; one that is in the wanted form already is
            written out as it is.
        out (str | os.PathLike): The checkpoint to write; the config gets its name with ``.py``.
        keep_bn (bool): Squeeze only, and keep the BatchNorms: the form of the plain network,
            which stock OpenMMLab backbones load. Defaults to False.
        force (bool): Replace existing files. Defaults to False.
        probe_size (int): Height and width of the probe image in pixels. Defaults to 224.

    Returns:
        Conversion: What was done.

    Raises:
        UserError: If the config builds ``QATForm``, a file exists already, the checkpoint does not
            fit the config or is in deploy form where ``keep_bn`` is asked for, or the outputs
            differ by more than :data:`mmorepa.convs.convert.squeezing.TOLERANCE`.
    """
    refuse_qat_form(cfg, 'converted')
    inputs = [checkpoint, cfg.filename, *(bases_of(cfg.filename) if cfg.filename else ())]
    out = Path(out)
    if out.suffix in ('.py', '.safetensors'):
        raise UserError(f'{out} is no name for a checkpoint: wanted an ending such as .pth')
    check_out(out, inputs, force)
    out_config = check_out(out.with_suffix('.py'), inputs, force)

    source = load_model(cfg, checkpoint)
    before = source.model
    if keep_bn and source.form == 'deploy':
        raise UserError(
            f'{checkpoint} is in deploy form, its BatchNorms are folded: '
            'convert the training checkpoint to keep them'
        )

    after = squeeze(before, inplace=False) if keep_bn else switch_to_deploy(before, inplace=False)
    image = probe_image(probe_size, input_channels(before))
    agreement = compare_forms(before, after, image)
    if not agreement.within(TOLERANCE):
        raise UserError(
            f'the converted model does not agree with {checkpoint} on a probe image: {agreement}, '
            f'wanted at most {TOLERANCE:.0e} relative; nothing was written; '
            'tools/analyze.py diff names the layers'
        )

    form = 'plain' if keep_bn else 'deploy'
    meta = dict(source.checkpoint['meta'], mmorepa=dict(form=form, version=__version__))
    # Both or neither: the config gets its name once the checkpoint has its own.
    with written_whole(out_config, force) as temporary:
        temporary.write_text(text_of(deployed_config(cfg, keep_bn)), encoding='utf-8')
        save_checkpoint(dict(meta=meta, state_dict=dict(after.state_dict())), out, force)
    return Conversion(
        source_form=source.form,
        form=form,
        blocks=count_blocks(before),
        norms=count(before, _BatchNorm) - count(after, _BatchNorm),
        parameters=(count_parameters(before), count_parameters(after)),
        bytes=(count_bytes(before), count_bytes(after)),
        ema=source.is_average,
        agreement=agreement,
        out=out,
        config=out_config,
    )


def refuse_qat_form(cfg: Config, done: str) -> None:
    """Raise a :class:`UserError` if the model of a config is a ``QATForm``.

    Args:
        cfg (Config): The config.
        done (str): What was to be done, for the message.
    """
    if is_of_type(cfg.model, 'QATForm'):
        raise UserError(
            f'QATForm, a model with fake quantization, is not {done}: write its int8 file with '
            'tools/quantize.py'
        )


def deployed_config(cfg: Config, keep_bn: bool) -> Config:
    """The config that builds the plain or deploy form; see ``DeployForm``."""
    cfg = copy.deepcopy(cfg)
    if not is_of_type(cfg.model, 'DeployForm'):
        cfg.model.update(architecture=cfg.model.type, type='DeployForm')
    cfg.model.keep_bn = keep_bn
    # Training from here starts from the converted checkpoint, not from what came before it, and
    # writes to a folder of its own.
    _forget_pretrained(cfg.model)
    cfg.pop('work_dir', None)
    cfg.update(load_from=None, resume=False)
    return cfg


def _forget_pretrained(node) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            is_pretrained = isinstance(value, dict) and is_of_type(value, *PRETRAINED)
            if key == 'pretrained' or (key == 'init_cfg' and is_pretrained):
                node[key] = None
            else:
                _forget_pretrained(value)
    elif isinstance(node, list):
        for item in node:
            _forget_pretrained(item)


def count_blocks(model: nn.Module) -> int:
    """The number of blocks in ``model``; one inside of another is part of it."""
    if isinstance(model, ReparamConv2d):
        return 1
    return sum(count_blocks(child) for child in model.children())


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    """The number of modules of a kind in ``model``."""
    return sum(isinstance(module, kind) for module in model.modules())


def count_bytes(model: nn.Module) -> int:
    """The size of the state dict of ``model``, in bytes."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of ``model`` that a checkpoint has.

    The kernels that squeezed training holds as leaves follow from those.
    """
    saved = model.state_dict()
    return sum(p.numel() for name, p in model.named_parameters() if name in saved)
