#!/usr/bin/env python
"""Look into a network: python tools/analyze.py effective-lr CONFIG [CHECKPOINT]."""

import argparse
import sys
from pathlib import Path

from mmorepa import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Look into a network')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    add_effective_lr(commands)
    return parser.parse_args()


def add_effective_lr(commands) -> None:
    parser = commands.add_parser(
        'effective-lr',
        help='how far an SGD step moves each generated kernel',
        description='Measure how far one SGD step moves each generated kernel, on batches of the '
        "config's training data: next to a plain convolution with the same kernel and gradient, "
        'and relative to its own size. Prints a table and the lr_mult with which the stem would '
        'step like others; writes effective_lr.json and effective_lr.png.',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='a checkpoint of that config in training form (default: as training starts, with '
        'load_from and init_cfg of the config)',
    )
    parser.add_argument(
        '--batches', type=positive, default=4, metavar='N', help='how many to run (default: 4)'
    )
    parser.add_argument(
        '--out', metavar='DIR', help="where results go (default: the config's work dir)"
    )
    parser.add_argument(
        '--write',
        metavar='FILE',
        help='also write a config that inherits CONFIG, without --cfg-options, and has the lr_mult',
    )
    parser.add_argument(
        '--like',
        choices=['plain', 'block', 'relative'],
        default='plain',
        help='what the stem is to step like in FILE: a plain convolution with its kernel (the '
        'default), the other blocks, or the other blocks relative to the size of their kernels',
    )
    parser.add_argument('--force', action='store_true', help='replace FILE if it exists')
    cli.add_config_options(parser)
    parser.set_defaults(command=effective_lr)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is too few, wanted at least 1')
    return number


def effective_lr(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmorepa.analysis import effective_lr_report as reports
    from mmorepa.engine.run import load_config

    cfg = load_config(args.config, args.out, args.cfg_options)
    if args.write:
        reports.check_target(cfg, args.write, args.force)
    report = reports.study(cfg, args.checkpoint, args.batches)
    # A pipe or a file has no width: there a row stays one line.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(reports.table(report))
    for line in reports.summary(report):
        print(line)
    out = Path(cfg.work_dir)
    reports.write_json(report, out / 'effective_lr.json')
    reports.write_plot(report, out / 'effective_lr.png')
    print(f'wrote {out}/effective_lr.json and {out}/effective_lr.png')
    if args.write:
        reports.write_config(report, cfg, args.write, args.like)
        print(f'wrote {args.write}')


def main() -> None:
    args = parse_args()
    args.command(args)


if __name__ == '__main__':
    cli.run(main)
