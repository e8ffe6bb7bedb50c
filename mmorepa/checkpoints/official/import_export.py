"""From files of the released code to files of this package, and back."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ...config_files import text_of
from ...errors import UserError
from ...version import __version__
from ...writing import check_out, written_whole
from ..conversion import Conversion, convert
from ..files import load_checkpoint, save_checkpoint
from .networks import Network
from .reading import OfficialCheckpoint, read_official, recognize_ours

#: What a config of its own is made from: everything but the model.
_RECIPE = 'resnet18_4xb64-120e_in1k.py'


@dataclass(frozen=True)
class Import:
    """What an import did.

    Attributes:
        checkpoint (OfficialCheckpoint): What was read.
        out (Path): The checkpoint written.
        config (Path): The config that builds what loads it.
        wrote_config (bool): Whether ``config`` was written too, beside ``out``.
        conversion (Conversion, optional): To the deploy form, if there was one.
    """

    checkpoint: OfficialCheckpoint
    out: Path
    config: Path
    wrote_config: bool
    conversion: Conversion | None


def import_official(
    source: str | os.PathLike,
    out: str | os.PathLike,
    configs: str | os.PathLike,
    deploy: bool = False,
    force: bool = False,
    probe_size: int = 224,
) -> Import:
    """Turn a file of the released code into a checkpoint of this package.

    Where no file in ``configs`` builds the network, and for deploy forms always, a config is
    written beside the checkpoint.

    Args:
        source (str | os.PathLike): The released file.
        out (str | os.PathLike): The checkpoint to write, whole or not at all.
        configs (str | os.PathLike): The folder ``configs/imagenet``.
        deploy (bool): Convert to the deploy form; see
            :func:`mmorepa.checkpoints.conversion.convert`. Files in that form are verified in the
            same way. Defaults to False.
        force (bool): Replace existing files.
        probe_size (int): Height and width of the probe image in pixels. Defaults to 224.

    Returns:
        Import: What was done.

    Raises:
        UserError: If a file exists already or ``out`` is ``source``, as
            :func:`mmorepa.checkpoints.official.reading.read_official` has it, and as ``convert``
            has it.
    """
    out = check_out(out, [source], force)
    checkpoint = read_official(source)
    network = checkpoint.network
    ready = Path(configs) / network.config if network.config else None
    deploy = deploy or checkpoint.form == 'deploy'
    out_config = out.with_suffix('.py')
    wrote_config = deploy or ready is None
    if wrote_config:
        if out_config == out:
            raise UserError(f'{out} is no name for a checkpoint: wanted an ending such as .pth')
        check_out(out_config, [source], force)

    cfg = Config.fromfile(ready) if ready else own_config(network, configs)
    form = 'plain' if network.block == 'base' else 'training'
    meta = dict(
        checkpoint.meta,
        official=dict(arch=checkpoint.architecture, type=checkpoint.block),
        mmorepa=dict(form='deploy' if checkpoint.form == 'deploy' else form, version=__version__),
    )
    content = dict(meta=meta, state_dict=checkpoint.state_dict)
    conversion = None
    if deploy:
        with tempfile.TemporaryDirectory() as folder:
            renamed = Path(folder) / Path(source).name
            save_checkpoint(content, renamed)
            conversion = convert(cfg, renamed, out, force=force, probe_size=probe_size)
    elif wrote_config:
        # Both or neither: the config gets its name once the checkpoint has its own.
        with written_whole(out_config) as temporary:
            temporary.write_text(text_of(cfg), encoding='utf-8')
            save_checkpoint(content, out)
    else:
        save_checkpoint(content, out)
    return Import(checkpoint, out, out_config if wrote_config else ready, wrote_config, conversion)


def own_config(network: Network, configs: str | os.PathLike) -> Config:
    """A config of a network for which ``configs`` has none: its model, and the released recipe."""
    cfg = Config.fromfile(Path(configs) / _RECIPE)
    cfg.model = network.model
    return cfg


def export_official(
    source: str | os.PathLike, out: str | os.PathLike, force: bool = False
) -> Network:
    """Write a training checkpoint of this package as the released code writes its own.

    There are its ``arch``, ``epoch`` where it is known, and ``state_dict``; no state of the
    optimizer, so that it can be evaluated, converted and loaded there, but not resumed.

    Args:
        source (str | os.PathLike): A classifier in the training form.
        out (str | os.PathLike): The file to write, ``.pth.tar`` in the release.
        force (bool): Replace an existing file.

    Returns:
        Network: What it is in the release.

    Raises:
        UserError: If ``out`` exists already or is ``source``, ``source`` cannot be read, or the
            release has no such network.
    """
    check_out(out, [source], force)
    checkpoint = load_checkpoint(source)
    network = recognize_ours(checkpoint['state_dict'], str(source))
    state_dict = network.to_released(checkpoint['state_dict'])
    epoch = checkpoint.get('meta', {}).get('epoch')
    content = dict(arch=network.architecture)
    if epoch is not None:
        content.update(epoch=epoch)
    content.update(state_dict={f'module.{key}': value for key, value in state_dict.items()})
    save_checkpoint(content, out)
    return network
