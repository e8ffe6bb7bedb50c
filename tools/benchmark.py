#!/usr/bin/env python
"""What training and inference cost: python tools/benchmark.py none DBB OREPA --out DIR."""

import argparse
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import cli

#: The project's own targets, which a checkout has and an installed package has not.
TARGETS = Path(__file__).with_name('targets.py')
PRESETS = [*['targets'] * TARGETS.is_file(), 'paper', 'roofline']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Compare training steps, memory, evaluation and deploy form of a network with '
        'different blocks, or of the models of configs, on random images. Prints Markdown tables; '
        'writes benchmark.json, benchmark.md and pictures. Subjects take turns; the others are '
        'compared with the first. Ctrl-C keeps what was measured so far.'
    )
    parser.add_argument(
        'subjects',
        nargs='*',
        metavar='SUBJECT',
        help='none, DBB, OREPA, OREPA-squeezed, OREPA-offline, another block, OREPA-shared-out '
        '(squeezed, with --processes), released-none, -DBB, -OREPA, or a config file (default: the '
        'first five, with --processes none, OREPA, -squeezed and -shared-out; with --released '
        'released-DBB and -OREPA too)',
    )
    parser.add_argument(
        '--preset',
        choices=PRESETS,
        help="targets: all that the project's targets need, in a checkout; paper: what each "
        'component costs offline and online; roofline: what a step would cost on a V100, A100 and '
        'H100, computed from counted operations and checked against the paper (batch 64, '
        '--processes 4; with --released against all its columns). Each chooses its own subjects',
    )
    what = parser.add_argument_group('what is measured')
    what.add_argument(
        '--network',
        nargs='+',
        metavar='NAME',
        help='resnet18, resnet50, resnext50, repvgg-a0, ... (default: resnet18)',
    )
    what.add_argument('--batch', nargs='+', type=cli.positive, metavar='N', help='(default: 8)')
    what.add_argument(
        '--size',
        nargs='+',
        type=cli.positive,
        metavar='PIXELS',
        help='height and width (default: 224)',
    )
    what.add_argument(
        '--width', nargs='+', type=cli.factor, metavar='FACTOR', help='on all channels (default: 1)'
    )
    what.add_argument(
        '--grid',
        action='store_true',
        help='all combinations of these (default: one at a time, the others at their first value)',
    )
    what.add_argument(
        '--frozen-stages', type=int, default=-1, metavar='N', help='as of the backbones'
    )
    what.add_argument(
        '--accumulate',
        type=cli.positive,
        default=1,
        metavar='N',
        help='a step is N micro-batches of forward and backward, then one update (default: 1)',
    )
    what.add_argument(
        '--processes',
        type=cli.positive,
        metavar='N',
        help='train with DDP in N processes on this machine, over gloo with one thread each, or '
        'over NCCL with a GPU each; bytes that are sent are counted (default: 1)',
    )
    what.add_argument(
        '--measure',
        nargs='+',
        choices=['train', 'memory', 'eval', 'operations'],
        help='(default: all, with --processes train and operations)',
    )
    what.add_argument(
        '--kernels',
        nargs='+',
        type=cli.positive,
        metavar='CHANNELS',
        help='measure generating 3x3 and 1x1 kernels of so many channels as well',
    )
    what.add_argument(
        '--released', metavar='PATH', help='a checkout of the released code, to be measured too'
    )
    how = parser.add_argument_group('how it is measured')
    how.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    how.add_argument('--threads', type=cli.positive, metavar='N', help='of the CPU')
    how.add_argument('--amp', action='store_true', help='float16 on a GPU, bfloat16 on a CPU')
    how.add_argument('--channels-last', action='store_true', help='memory format')
    how.add_argument('--compile', action='store_true', help='torch.compile')
    how.add_argument(
        '--optimizer',
        choices=['default', 'foreach', 'fused'],
        default='default',
        help='implementation of SGD (default: the one torch chooses)',
    )
    how.add_argument('--repeats', type=cli.positive, default=10, metavar='N', help='(default: 10)')
    how.add_argument(
        '--warm-up', type=int, default=3, metavar='N', help='repeats before (default: 3)'
    )
    how.add_argument(
        '--steps',
        type=cli.positive,
        metavar='N',
        help='steps timed together in a repeat (default: 1 on a CPU, 4 on a GPU)',
    )
    parser.add_argument(
        '--from-json',
        type=Path,
        metavar='FILE',
        help='measure nothing: print and draw what an earlier benchmark.json holds',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmark'),
        metavar='DIR',
        help='where results go (default: work_dirs/benchmark)',
    )
    return parser.parse_args()


def load_targets() -> SimpleNamespace | None:
    """The project's targets; None where there are none."""
    return SimpleNamespace(**runpy.run_path(str(TARGETS))) if TARGETS.is_file() else None


def main() -> None:
    args = parse_args()
    from mmorepa.lab.benchmark import command

    text = shlex.join(['python', *sys.argv])
    targets = load_targets()
    if args.from_json:
        print(command.show(args.from_json, args.out, targets))
    else:
        print(command.run(args, text, targets))


if __name__ == '__main__':
    cli.run(main)
