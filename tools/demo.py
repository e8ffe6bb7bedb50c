#!/usr/bin/env python
"""Pretrain OREPA ResNet-18 on scanned digits, convert it, and compare both forms: make demo.

Every step is a command of this repository or of mim, printed before it runs.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from mmorepa import cli

TOOLS = Path(os.path.relpath(Path(__file__).parent))
CONFIG = TOOLS.parent / 'configs' / 'digits' / 'orepa-resnet18_1xb64-10e_digits.py'
WORK_DIR = Path('work_dirs/demo')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to training'
    )
    return parser.parse_args()


def main() -> None:
    options = parse_args().cfg_options
    options = ['--cfg-options', *options] if options else []

    title('Real images that need no download')
    run('python', TOOLS / 'dataset_converters/digits.py', 'data/digits', '--formats', 'imagenet')

    title('Pretrain')
    command = ['mim', 'train', 'mmpretrain', CONFIG, '--gpus', 0, '--work-dir', WORK_DIR]
    seconds = run(*command, *options)
    trained = os.path.relpath((WORK_DIR / 'last_checkpoint').read_text().strip())
    trained = (WORK_DIR / CONFIG.name, trained)  # training leaves its config there

    title('Evaluate the training form')
    out = ['--work-dir', WORK_DIR, '--out']
    run('python', TOOLS / 'test.py', *trained, *out, WORK_DIR / 'training.json')

    title('Convert')
    deploy = (WORK_DIR / 'deploy.py', WORK_DIR / 'deploy.pth')
    run('python', TOOLS / 'convert.py', *trained, deploy[1], '--force')

    title('Evaluate the deploy form')
    run('python', TOOLS / 'test.py', *deploy, *out, WORK_DIR / 'deploy.json')

    title('Summary')
    report(dict(training=trained, deploy=deploy), seconds)


def title(text: str) -> None:
    """Print a heading."""
    print(f'\n\033[1m== {text}\033[0m' if sys.stdout.isatty() else f'\n== {text}', flush=True)


def run(program: str, *arguments) -> float:
    """Print and run a command; the seconds it took. Ends the demo if the command fails."""
    arguments = [str(argument) for argument in arguments]
    print('$', shlex.join([program, *arguments]), flush=True)
    start = time.perf_counter()
    code = subprocess.run([Path(sys.executable).parent / program, *arguments]).returncode
    if code:
        sys.exit(f'error: this step ended with exit code {code}; what it printed says why')
    return time.perf_counter() - start


def report(forms: dict[str, tuple], seconds: float) -> None:
    """Print how both forms compare over the whole validation set, and what they cost.

    Args:
        forms (dict[str, tuple]): Config and checkpoint by form.
        seconds (float): What training took.
    """
    import torch
    from mmengine.runner import Runner
    from rich.console import Console
    from rich.table import Table

    from mmorepa import verify
    from mmorepa.checkpoints import load_any_form, load_checkpoint
    from mmorepa.checkpoints.conversion import build_model, count_parameters
    from mmorepa.engine.run import load_config

    models = {}
    for form, (config, checkpoint) in forms.items():
        cfg = load_config(config)
        models[form] = build_model(cfg)
        load_any_form(models[form], load_checkpoint(checkpoint)['state_dict'], checkpoint)
    loader = Runner.build_dataloader(cfg.val_dataloader)
    batches = [models['training'].data_preprocessor(batch)['inputs'] for batch in loader]
    agreement = verify(*models.values(), torch.cat(batches), mode='tensor')

    table = Table('', *[f'{form} form' for form in forms])
    metrics = [json.loads((WORK_DIR / f'{form}.json').read_text()) for form in forms]
    for name in metrics[0]:
        table.add_row(name, *[f'{metric[name]:.2f} %' for metric in metrics])
    sizes = [f'{count_parameters(model) / 1e6:.2f} M' for model in models.values()]
    table.add_row('parameters', *sizes)
    times = interleaved_seconds(models, batches[0])
    times = [f'{median:.3f} ({low:.3f} to {high:.3f})' for low, median, high in times]
    table.add_row(f'seconds for {len(batches[0])} images', *times)
    console = Console(highlight=False)
    console.print(table)
    console.print(f'logits of all validation images: {agreement}')
    console.print(f'training took {seconds / 60:.1f} minutes, start-up included')
    console.print(f'results are in {WORK_DIR}')
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
