#!/usr/bin/env python
"""Train OREPA networks on scanned digits, convert them, and compare both forms.

``make demo`` pretrains ResNet-18; ``make demo-finetune`` goes on with RetinaNet and PSPNet.
Every step is a command of this repository or of mim, printed before it runs. What it prints itself
goes to a log file.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import cli

TOOLS = Path(os.path.relpath(Path(__file__).parent))
CONFIGS = TOOLS.parent / 'configs' / 'digits'
WORK_DIR = Path('work_dirs/demo')
CONSOLE = Console(highlight=False, soft_wrap=True)

#: Library, config and data set of each experiment.
EXPERIMENTS = dict(
    pretrain=('mmpretrain', 'orepa-resnet18_1xb64-10e_digits.py', 'imagenet'),
    detect=('mmdet', 'retinanet_orepa-r18_fpn_1xb8-8e_digits.py', 'coco'),
    segment=('mmseg', 'pspnet_orepa-r18-d8_1xb4-600_digits-128x128.py', 'cityscapes'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'experiments',
        nargs='*',
        default=['pretrain'],
        metavar='EXPERIMENT',
        help=f'any of {", ".join(EXPERIMENTS)}; the last two start from what the first has left '
        '(default: pretrain)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to training'
    )
    args = parser.parse_args()
    unknown = [name for name in args.experiments if name not in EXPERIMENTS]
    if unknown:
        parser.error(f'no experiment {unknown[0]!r}: choose from {", ".join(EXPERIMENTS)}')
    return args


def main() -> None:
    args = parse_args()
    for experiment in args.experiments:
        demonstrate(experiment, args.cfg_options)


def demonstrate(experiment: str, options: list[str]) -> None:
    """Train, evaluate, convert, evaluate again, compare."""
    from mmorepa.environment import distribution

    library, name, data = EXPERIMENTS[experiment]
    work_dir = WORK_DIR / experiment
    if experiment != 'pretrain':
        checkpoint = last_checkpoint(WORK_DIR / 'pretrain')
        options = [f'model.backbone.init_cfg.checkpoint={checkpoint}', *options]
    log = WORK_DIR / f'{experiment}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    CONSOLE.print(f'{experiment}: what the commands print goes to {log}', style='bold')

    run(log, 'python', TOOLS / 'dataset_converters/digits.py', 'data/digits', '--formats', data)

    command = ['mim', 'train', distribution(library), CONFIGS / name, '--gpus', 0]
    command += ['--work-dir', work_dir]
    if options:
        command += ['--cfg-options', *options]
    seconds = run(log, *command)
    trained = (work_dir / name, last_checkpoint(work_dir))  # training leaves its config there

    out = ['--work-dir', work_dir, '--out']
    run(log, 'python', TOOLS / 'test.py', *trained, *out, work_dir / 'training.json')
    deploy = (work_dir / 'deploy.py', work_dir / 'deploy.pth')
    run(log, 'python', TOOLS / 'convert.py', *trained, deploy[1], '--force')
    run(log, 'python', TOOLS / 'test.py', *deploy, *out, work_dir / 'deploy.json')
    report(work_dir, dict(training=trained, deploy=deploy), seconds)


def last_checkpoint(work_dir: Path) -> str:
    """The checkpoint that training left last in a folder."""
    note = work_dir / 'last_checkpoint'
    if not note.exists():
        sys.exit(f'error: no checkpoint in {work_dir}: run the experiment {work_dir.name} first')
    return os.path.relpath(note.read_text().strip())


def run(log: Path, program: str, *arguments) -> float:
    """Print and run a command. The demo ends if the command fails.

    Args:
        log (Path): The file that what the command prints is appended to.
        program (str): A program of this environment.
        arguments: Its arguments.

    Returns:
        float: The seconds that it took.
    """
    words = [program, *map(str, arguments)]
    CONSOLE.print('$', shlex.join(words), markup=False)
    start = time.perf_counter()
    with (
        log.open('a', encoding='utf-8') as file,
        CONSOLE.status('') as status,
        subprocess.Popen(
            [Path(sys.executable).parent / program, *words[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process,
    ):
        print('$', shlex.join(words), file=file)
        for line in process.stdout:
            file.write(line)
            status.update(escape(line.strip()[: CONSOLE.width - 4]))
    if process.returncode:
        last = '\n'.join(log.read_text(encoding='utf-8').splitlines()[-20:])
        sys.exit(f'{last}\nerror: this step ended with exit code {process.returncode}; see {log}')
    return time.perf_counter() - start


def report(work_dir: Path, forms: dict[str, tuple], seconds: float) -> None:
    """Print how both forms compare over the validation images, and what they cost.

    Args:
        work_dir (Path): Holds the metrics of each form.
        forms (dict[str, tuple]): Config and checkpoint by form.
        seconds (float): What training took.
    """
    import torch
    from rich.table import Table

    from mmorepa import verify
    from mmorepa.checkpoints import load_model
    from mmorepa.checkpoints.conversion import count_parameters
    from mmorepa.engine.data import build_loader, image_batches
    from mmorepa.engine.run import load_config

    models = {}
    for form, (config, checkpoint) in forms.items():
        cfg = load_config(config)
        models[form] = load_model(cfg, checkpoint).model
    batches = image_batches(build_loader(cfg, 'val_dataloader'), models['training'])
    images = torch.cat(list(itertools.islice(batches, 50)))
    agreement = verify(*models.values(), images, mode='tensor')

    table = Table('', *[f'{form} form' for form in forms])
    metrics = [json.loads((work_dir / f'{form}.json').read_text()) for form in forms]
    for name in metrics[0]:
        table.add_row(name, *[f'{metric[name]:.3f}' for metric in metrics])
    sizes = [f'{count_parameters(model) / 1e6:.2f} M' for model in models.values()]
    table.add_row('parameters', *sizes)
    images_timed = images[:64]
    times = interleaved_seconds(models, images_timed)
    times = [f'{median:.3f} ({low:.3f} to {high:.3f})' for low, median, high in times]
    table.add_row(f'seconds for {len(images_timed)} images', *times)
    CONSOLE.print(table)
    print(f'raw outputs for {len(images)} validation images: {agreement}')
    print(
        f'training took {seconds / 60:.1f} minutes, start-up included: one run with seed '
        f'{cfg.randomness.seed}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    )
    print(f'results are in {work_dir}')
    if not agreement.within():
        sys.exit('error: the deploy form does not agree with the training form')


def interleaved_seconds(models: dict, batch, repeats: int = 7) -> list[tuple]:
    """Lowest, median and highest time of a forward pass of each model, run in turn."""
    import torch

    times = {form: [] for form in models}
    with torch.inference_mode():
        for model in models.values():
            model.eval()(batch, mode='tensor')
        for _ in range(repeats):
            for form, model in models.items():
                start = time.perf_counter()
                model(batch, mode='tensor')
                times[form].append(time.perf_counter() - start)
    return [(min(t), sorted(t)[len(t) // 2], max(t)) for t in times.values()]


if __name__ == '__main__':
    cli.run(main)
