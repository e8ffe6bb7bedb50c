"""What training costs with each component of OREPA, offline and online, on a config's backbone.

The paper's bars of memory and time. Measuring, tables and pictures are those of
:mod:`mmorepa.lab.benchmark`; here a config's backbone takes the place of a network by name.
"""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import Config

from ...backbones.reparam_resnet import ReparamResNetMixin
from ...checkpoints.models import build_model
from ...config_files import text_of
from ...errors import UserError
from ..benchmark import command as benchmark
from ..benchmark.measuring import Study
from ..benchmark.plan import NetworkCase, Setup, ladder
from ..benchmark.subjects import Subject

RESULTS = 'budget.json'


def run(
    cfg: Config,
    out: str | os.PathLike,
    batch: int = 8,
    size: int = 224,
    repeats: int = 10,
    warm_up: int = 3,
    device: str | None = None,
    command: str = '',
) -> str:
    """Measure and write results, report and pictures.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``, with a ResNet of this
            package.
        out (str | os.PathLike): Folder for ``budget.json``, ``benchmark.md``, ``bars.png`` and
            ``split.png``.
        batch (int): Random images a step. Defaults to 8.
        size (int): Height and width in pixels. Defaults to 224.
        repeats (int): Steps that are timed, of each. Defaults to 10.
        warm_up (int): Repeats before the first. Defaults to 3.
        device (str, optional): As torch names it. By default a GPU if there is one.
        command (str): The command line, to be noted.

    Returns:
        str: The report, tables in Markdown.

    Raises:
        UserError: If the backbone is another one, or nothing could be measured.
    """
    check(cfg)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    path = Path(out, RESULTS)
    with tempfile.TemporaryDirectory() as folder:
        case = NetworkCase(
            subjects(cfg, folder),
            network=Path(cfg.filename).stem,
            batch=batch,
            size=size,
            measures=('train', 'memory'),
            setup=Setup(device=device, steps=4 if device.startswith('cuda') else 1),
            purpose='paper',
        )
        study = Study([case], repeats, warm_up, command=command, preset='paper')
        results = study.run(save=lambda results: results.write(path))
    failures = [s.failures for s in results.cases[0].subjects if s.failures]
    if len(failures) == len(results.cases[0].subjects):
        raise UserError(f'nothing could be measured: {next(iter(failures[0].values()))}')
    return benchmark.show(path, out)


def check(cfg: Config) -> None:
    """Make sure that the backbone of a config is one that the paper's comparison is made of.

    Raises:
        UserError: If not.
    """
    backbone = getattr(build_model(cfg), 'backbone', None)
    if not isinstance(backbone, ReparamResNetMixin):
        found = type(backbone).__name__ if backbone is not None else 'no backbone'
        raise UserError(
            f'{Path(cfg.filename).name} has {found}: wanted a ResNet of this package, such as '
            'OREPAResNet, to which the components of OREPA are added one by one'
        )


def subjects(cfg: Config, folder: str | os.PathLike) -> tuple[Subject, ...]:
    """The rungs of :func:`mmorepa.lab.benchmark.plan.ladder` for a config's backbone.

    Args:
        cfg (Config): See :func:`run`.
        folder (str | os.PathLike): Gets a config for each.
    """
    found = []
    for number, subject in enumerate(ladder()):
        changed = copy.deepcopy(cfg)
        changed.model.backbone.reparam = subject.reparam
        # Freshly initialised: costs do not depend on values.
        changed.model.backbone.init_cfg = None
        path = Path(folder, f'{number}.py')
        path.write_text(text_of(changed), encoding='utf-8')
        found.append(replace(subject, reparam=None, config=str(path)))
    return tuple(found)
