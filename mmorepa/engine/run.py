"""Training and testing through MMEngine's Runner, for configs of any OpenMMLab library."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from ..checkpoints import load_any_form, load_checkpoint
from ..checkpoints.files import mmengine_loads_weights_only
from ..config_files import refuse_objects
from ..errors import UserError, explained_building, first_line
from ..writing import alone_in, naming_a_full_disk
from . import cpu_amp, cpu_processes, sharding
from .config_checks import (
    check_fields,
    check_launcher,
    check_start,
    check_training,
    check_work_dir,
    is_count,
)
from .custom_hooks import add_hooks
from .data import naming_broken_images
from .init_hook import InitHook
from .non_finite import refuse_non_finite_outputs
from .resume import prepare_resume
from .seeding import seed_samples
from .squeezed_step import unwrap

#: Where torchrun, Slurm and Open MPI put the number of a process.
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def load_config(
    path: str | os.PathLike,
    work_dir: str | os.PathLike | None = None,
    cfg_options: dict | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config file and apply the options of the command line.

    Args:
        path (str | os.PathLike): The config.
        work_dir (str | os.PathLike, optional): The folder for logs and checkpoints. Defaults to
            that of the config, or else to ``work_dirs/<name of the config>``.
        cfg_options (dict, optional): Fields to change, by dotted keys.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Returns:
        Config: Ready for the Runner.

    Raises:
        UserError: If there is no such file, it is not a config, a field of it is no dict or list
            where the Runner takes one or cannot be written to a file, or the launcher was not the
            one that started the process.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no config at {path}: check the path')
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(f'{path} is no config: wanted a .py, .json or .yaml file')
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:
        # MMEngine wraps the error of a custom import twice.
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__
        raise UserError(f'{path} imports what cannot be imported: {error}') from None
    except RecursionError:
        raise UserError(f'{path} is its own _base_, by way of others: name another one') from None
    except SystemExit:
        raise UserError(f'{path} ends the process while it is read: take exit() out') from None
    except Exception as error:
        raise UserError(f'{path} is no config that can be read: {_why(error)}') from None
    # With names in place of classes, as a new-style config is dumped.
    cfg = Config(cfg.to_dict(), filename=str(path))
    if cfg_options:
        try:
            cfg.merge_from_dict(cfg_options)
        except Exception as error:
            raise UserError(f'--cfg-options do not fit {path}: {first_line(error)}') from None
        if any(key.split('.')[0] == 'custom_imports' for key in cfg_options):
            _import_custom(cfg)
    if 'model' not in cfg:
        raise UserError(f'{path} has no model: wanted a config with a model')
    if not isinstance(cfg.model, dict) or 'type' not in cfg.model:
        raise UserError(f'{path} has model={cfg.model!r}: wanted a dict with the type of a model')
    check_fields(cfg)
    refuse_objects(cfg)
    check_launcher(launcher)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', path.stem))
    return cfg


def _why(error: Exception) -> str:
    """What is wrong with a config file, and in which of its lines."""
    said = first_line(error)
    if mark := getattr(error, 'problem_mark', None):  # of YAML
        return f'line {mark.line + 1}: {error.problem}'
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.name == '<module>':
            kind = type(error).__name__
            return f'{said} ({kind}) in line {frame.lineno} of {frame.filename}'
    if isinstance(error, (AttributeError, TypeError)):
        return f'{said}: wanted fields with values, and names of files as _base_'
    return said


def _import_custom(cfg: Config) -> None:
    """Import what ``--cfg-options`` add to ``custom_imports``, which MMEngine has read before."""
    wanted = cfg.get('custom_imports')
    try:
        import_modules_from_strings(**wanted)
    except Exception as error:
        raise UserError(
            f'custom_imports={wanted!r} cannot be imported: {first_line(error)}: wanted '
            "dict(imports=['module'], allow_failed_imports=False)"
        ) from None


def train(
    cfg: Config,
    resume: bool | str = False,
    amp: bool = False,
    auto_scale_lr: bool = False,
    validate: bool = True,
    init: str | os.PathLike | None = None,
) -> nn.Module:
    """Train the model of a config.

    Random numbers depend only on the seed and the position in the training, so a training that was
    stopped and resumed equals one that was not.

    Args:
        cfg (Config): From :func:`load_config`.
        resume (bool | str): True resumes from the newest whole checkpoint in the work dir, if there
            is one; a path resumes from that file.
        amp (bool): Train under automatic mixed precision.
        auto_scale_lr (bool): Scale the learning rate with the real batch size.
        validate (bool): False leaves out the evaluation during training.
        init (str | os.PathLike, optional): A checkpoint that the backbone starts from, plain or
            not, see :func:`mmorepa.backbones.pretrained.load_pretrained`.

    Returns:
        nn.Module: The trained model.

    Raises:
        UserError: If the config lacks a field that an option needs, or the checkpoint to resume
            from does not exist or is torn, the work dir cannot be written to, or its disk is full.
    """
    check_work_dir(cfg)
    check_training(cfg)
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        if not is_count(base):
            raise UserError(
                f'--auto-scale-lr found auto_scale_lr.base_batch_size={base!r} in the config: '
                'wanted a whole number of at least 1'
            )
        cfg.auto_scale_lr.enable = True
    if init is not None:
        if 'backbone' not in cfg.model:
            raise UserError('--init wants a model with a backbone in the config')
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(init))
        # Another name of it, which mmseg's configs have; both at once are refused.
        for part in (cfg.model, cfg.model.backbone):
            part.pop('pretrained', None)
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if not resume and cfg.get('resume'):
        resume = cfg.get('load_from') or True
    if not resume:
        check_start(cfg, cfg.get('load_from'))
    check_start(cfg, init)
    notes = prepare_resume(cfg, resume) if resume else []
    # The other processes of one training write to the same folder.
    is_first = all(os.environ.get(name, '0') == '0' for name in RANKS)
    with (
        alone_in(cfg.work_dir) if is_first else contextlib.nullcontext(),
        training_runner(cfg) as runner,
    ):
        # MMEngine's FlexibleRunner builds its model later.
        if init is not None and isinstance(runner.model, nn.Module):
            backbone = unwrap(runner.model).backbone
            if getattr(backbone, 'reparam', None) is None:
                backbone.init_cfg = None
                runner.register_hook(InitHook(str(init)))
        for note in notes:
            runner.logger.warning(note)
        return runner.train()


@contextlib.contextmanager
def training_runner(cfg: Config) -> Iterator[Runner]:
    """The Runner of a config and a context to train in, with the hooks that every training has.

    Args:
        cfg (Config): From :func:`load_config`. Changed in place.

    Raises:
        UserError: If the config does not build, an image or a checkpoint cannot be read, or the
            disk is full.
    """
    seed_samples(cfg)
    add_hooks(
        cfg,
        'IterSeedHook',
        'AccumulatedGradientsHook',
        'LoadFromHook',
        'NonFiniteHook',
        'SqueezedTrainingHook',
    )
    if cfg.get('compile'):
        add_hooks(cfg, 'EagerOptimizerHook')
    with (
        explained_building(str(cfg.filename)),
        mmengine_loads_weights_only(),
        naming_a_full_disk(cfg.work_dir),
        naming_broken_images(),
    ):
        yield build_runner(cfg)


def test(cfg: Config, checkpoint: str | os.PathLike) -> dict[str, float | list]:
    """Evaluate a checkpoint in training, plain or deploy form; the form is detected.

    Args:
        cfg (Config): From :func:`load_config`: the config that the checkpoint was trained with, or
            the one that was written beside a converted checkpoint.
        checkpoint (str | os.PathLike): The file.

    Returns:
        dict[str, float | list]: The evaluator's metrics, from :func:`as_numbers`.

    Raises:
        UserError: If the checkpoint cannot be read or does not fit, the work dir cannot be written
            to, or the network gives values that are not finite.
    """
    state_dict = load_checkpoint(checkpoint)['state_dict']
    check_work_dir(cfg)
    # A config that a resumed training left would load the newest checkpoint over this one.
    cfg.load_from, cfg.resume = None, False
    with explained_building(str(cfg.filename)):
        runner = build_runner(cfg)
        form = load_any_form(unwrap(runner.model), state_dict, str(checkpoint))
        print_log(f'{checkpoint} is in {form} form', logger='current')
        with naming_broken_images(), refuse_non_finite_outputs(unwrap(runner.model)):
            return as_numbers(runner.test())


def as_numbers(metrics: dict) -> dict[str, float | list]:
    """An evaluator's metrics as numbers of Python, or lists of them, such as one for each class."""
    return {
        name: torch.as_tensor(value, dtype=torch.float64).tolist()
        for name, value in metrics.items()
    }


def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a config; several processes and AMP also work without a GPU."""
    cpu_processes.prepare(cfg)
    cpu_amp.prepare(cfg)
    sharding.prepare(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
