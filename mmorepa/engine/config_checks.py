"""What a config and its launcher must have before MMEngine's Runner sees them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmengine.config import Config

from ..config_files import bases_of
from ..errors import UserError
from ..writing import check_folder

#: The fields that the Runner, or this package, reads as dicts where they are given.
DICTS = (
    'auto_scale_lr',
    'data_preprocessor',
    'default_hooks',
    'env_cfg',
    'optim_wrapper',
    'randomness',
    'test_cfg',
    'test_dataloader',
    'train_cfg',
    'train_dataloader',
    'val_cfg',
    'val_dataloader',
)
#: A variable that each launcher sets, and how it is started.
LAUNCHERS = dict(
    pytorch=('RANK', 'torchrun --nproc_per_node=2 tools/train.py ...'),
    slurm=('SLURM_PROCID', 'srun python tools/train.py ...'),
    mpi=('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun -n 2 python tools/train.py ...'),
)


def check_fields(cfg: Config) -> None:
    """Refuse fields of a config that are no dicts where MMEngine takes them for dicts.

    Raises:
        UserError: If there is one. None stands for a field that is not there, except of ``env_cfg``
            and ``randomness``.
    """
    name = Path(cfg.filename).name
    for key in DICTS:
        value = cfg.get(key, {})
        if not isinstance(value, dict) and (value is not None or key in ('env_cfg', 'randomness')):
            raise UserError(f'{name} has {key}={value!r}: wanted a dict')
    hooks = cfg.get('custom_hooks')
    if hooks is not None and not isinstance(hooks, (list, tuple)):
        raise UserError(f'{name} has custom_hooks={hooks!r}: wanted a list')


def check_training(cfg: Config) -> None:
    """Refuse the schedule of a training that would do nothing, or fail in its middle.

    Raises:
        UserError: If the config defines no training, or a number of epochs or iterations is no
            whole number of at least 1.
    """
    name = Path(cfg.filename).name
    missing = [
        key for key in ('train_cfg', 'train_dataloader', 'optim_wrapper') if not cfg.get(key)
    ]
    if missing:
        raise UserError(f'{name} has no {missing[0]}: wanted one to train with')
    for key in ('max_epochs', 'max_iters', 'val_interval'):
        value = cfg.train_cfg.get(key, 1)
        if not is_count(value):
            raise UserError(
                f'{name} has train_cfg.{key}={value!r}: wanted a whole number of at least 1'
            )


def check_work_dir(cfg: Config) -> None:
    """Make sure that logs and checkpoints can go to ``work_dir``.

    MMEngine writes the whole config there, under the name of its file. A config that was written so
    may be used again where it is.

    Raises:
        UserError: If nothing can be written there, or a config that somebody wrote would be
            replaced.
    """
    folder, config = check_folder(cfg.work_dir, '--work-dir'), Path(cfg.filename)
    dump = os.path.realpath(folder / config.name)
    if dump in map(os.path.realpath, bases_of(config)):
        raise UserError(
            f'{folder / config.name} is a base of {config}, and MMEngine would replace it: choose '
            'another --work-dir'
        )
    if not os.path.exists(dump):
        return
    text = Path(dump).read_text(encoding='utf-8', errors='replace')
    if re.search(r'^\s*#|^(_base_\b|from |import |with )', text, re.MULTILINE):
        raise UserError(
            f'{folder / config.name} is a config that somebody wrote, and MMEngine would replace '
            'it by the config with all its bases: choose another --work-dir'
        )


def check_start(cfg: Config, checkpoint: str | os.PathLike | None) -> None:
    """Refuse to start from a checkpoint in the work dir, where a training may replace it.

    Raises:
        UserError: If it is there.
    """
    if checkpoint is not None and Path(checkpoint).is_file():
        if os.path.realpath(Path(checkpoint).parent) == os.path.realpath(cfg.work_dir):
            raise UserError(
                f'{checkpoint} is in the work dir, where this training may replace it: choose '
                'another --work-dir, or go on with --resume'
            )


def is_count(value: object) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_launcher(launcher: str) -> None:
    """Refuse a launcher that did not start this process.

    Raises:
        UserError: If a variable that it sets is not there.
    """
    variable, start = LAUNCHERS.get(launcher, (None, None))
    if variable and variable not in os.environ:
        raise UserError(
            f'--launcher {launcher} found no {variable} in the environment: start this command '
            f'with {start}'
        )
