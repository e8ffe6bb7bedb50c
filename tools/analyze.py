#!/usr/bin/env python
"""Look into a network: python tools/analyze.py COMMAND CONFIG [CHECKPOINT]."""

import argparse
import importlib
import shlex
import sys
from pathlib import Path

import cli

FRESH = '(default: as training starts, with load_from and init_cfg of the config)'
TRAINED = f'a checkpoint of that config in training form {FRESH}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Look into a network. Every command prints a table and writes its numbers as '
        'JSON and a picture as PNG.'
    )
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    own = add_command(
        commands,
        'effective-lr',
        effective_lr,
        help='how far an SGD step moves each generated kernel',
        description='Measure how far one SGD step moves each generated kernel, on batches of the '
        "config's training data: next to a plain convolution with the same kernel and gradient, "
        'and relative to its own size. Prints a table and the lr_mult with which the stem would '
        'step like others, or all blocks like the network of --plain; writes effective_lr.json '
        'and effective_lr.png.',
    )
    own.add_argument(
        '--batches', type=cli.positive, default=4, metavar='N', help='how many to run (default: 4)'
    )
    own.add_argument(
        '--write',
        metavar='FILE',
        help='also write a config that inherits CONFIG, without --cfg-options, and has the lr_mult',
    )
    own.add_argument(
        '--like',
        choices=['plain', 'block', 'relative', 'network'],
        default='plain',
        help='what the stem is to step like in FILE: a plain convolution with its kernel (the '
        'default), the other blocks, or the other blocks relative to the size of their kernels; '
        'network: what all blocks are, the network of --plain, relative to the size of kernels',
    )
    add_plain(
        own,
        'the same network with plain convolutions, and a checkpoint of it (without CHECKPOINT, as '
        'training starts): the table shows its relative steps as well',
    )
    own.add_argument('--force', action='store_true', help='replace FILE if it exists')

    add_command(
        commands,
        'branches',
        report,
        module='branches_report',
        help='how alike the branches of each layer are, and what each has in the kernel',
        description="Compare the kernels of each layer's branches, with and without their scales: "
        'cosine of each pair, their mean, and the share of each branch in the kernel. Writes '
        'branches.json and branches.png.',
    )

    add_command(
        commands,
        'spectrum',
        report,
        module='spectrum_report',
        help='what the frequency prior contributes to each kernel',
        description='Measure the energy of each generated kernel at each frequency, with and '
        'without its frequency prior, and show the filters of the prior. Writes spectrum.json and '
        'spectrum.png.',
    )

    own = add_command(
        commands,
        'norms',
        report,
        module='stem_report',
        more=plain_of,
        help='the distribution of the deep linear stem against a plain stem',
        description="Compare the kernel of a network's deep linear stem with that of a plain one: "
        'histogram, norms of the channels, singular values, energy at each position. Writes '
        'norms.json and norms.png.',
    )
    add_plain(
        own,
        'the plain network, and a checkpoint of it with BatchNorms (default: fresh Kaiming values; '
        'without CHECKPOINT, as training starts)',
    )

    own = add_command(
        commands,
        'diff',
        report,
        module='forms_report',
        more=lambda args: (args.data, args.probe_size),
        help='where the training form and the deploy form differ, layer by layer',
        description='Run both forms on the same images and compare them at every layer that '
        'changes: where to look when convert.py refuses. Writes diff.json and diff.png.',
        checkpoint=f'a checkpoint of that config, BatchNorms kept {FRESH}',
    )
    own.add_argument(
        '--data',
        action='store_true',
        help="run the first batch of the config's test data (default: a random image)",
    )
    own.add_argument(
        '--probe-size',
        type=cli.positive,
        default=224,
        metavar='PIXELS',
        help='side of the random image, as in convert.py (default: 224)',
    )

    own = add_command(
        commands,
        'budget',
        budget,
        help='memory and time of training with each component, offline and online',
        checkpoint='',
        description='Measure training steps of the backbone of a config on random images: plain, '
        'and with the components of OREPA added one by one, offline and online. The same as '
        'tools/benchmark.py --preset paper. Prints Markdown tables; writes budget.json, '
        'benchmark.md, bars.png and split.png.',
    )
    own.add_argument('--batch', type=cli.positive, default=8, metavar='N', help='(default: 8)')
    own.add_argument(
        '--size',
        type=cli.positive,
        default=224,
        metavar='PIXELS',
        help='height and width (default: 224)',
    )
    own.add_argument('--repeats', type=cli.positive, default=10, metavar='N', help='(default: 10)')
    own.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    return parser.parse_args()


def add_command(
    commands, name: str, command, help: str, description: str, checkpoint: str = TRAINED, **defaults
):
    """Add a command with what all of them take.

    Args:
        commands: The subparsers.
        name (str): Its name, and that of the files it writes.
        command (Callable): What it does.
        help (str): A line for the list of commands.
        description (str): For its own ``--help``.
        checkpoint (str): Which checkpoint it takes; empty if none.
        defaults: What ``command`` finds among its arguments.
    """
    parser = commands.add_parser(name, help=help, description=description)
    parser.add_argument('config', help='the config file')
    if checkpoint:
        parser.add_argument('checkpoint', nargs='?', help=checkpoint)
    parser.add_argument(
        '--out', metavar='DIR', help="where results go (default: the config's work dir)"
    )
    cli.add_config_options(parser)
    parser.set_defaults(command=command, name=name, **{'more': lambda args: (), **defaults})
    return parser


def add_plain(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument('--plain', nargs='+', metavar=('CONFIG', 'CHECKPOINT'), help=help)


def effective_lr(args: argparse.Namespace) -> None:
    from mmorepa.errors import UserError
    from mmorepa.lab.analysis import effective_lr_report as lr

    cfg, out = load(args)
    if args.write:
        lr.check_target(cfg, args.write, args.force)
    plain = plain_of(args)
    if args.like == 'network' and not plain:
        raise UserError('--like network wants the network: give --plain CONFIG [CHECKPOINT]')
    report = lr.study(cfg, args.checkpoint, args.batches, *plain)
    present(report, out / 'effective_lr')
    if args.write:
        lr.write_config(report, cfg, args.write, args.like)
        print(f'wrote {args.write}')


def plain_of(args: argparse.Namespace) -> list:
    """The config of ``--plain`` and perhaps the path of a checkpoint; empty without it."""
    from mmorepa.engine.run import load_config
    from mmorepa.errors import UserError

    if args.plain is None:
        return []
    config, *checkpoint = args.plain
    if len(checkpoint) > 1:
        found = len(args.plain)
        raise UserError(f'--plain has {found} values: wanted CONFIG and perhaps CHECKPOINT')
    return [load_config(config), *checkpoint]


def report(args: argparse.Namespace) -> None:
    """Print the report of a module of the laboratory, and write its numbers and its picture."""
    module = importlib.import_module(f'mmorepa.lab.analysis.{args.module}')
    cfg, out = load(args)
    present(module.study(cfg, args.checkpoint, *args.more(args)), out / args.name)


def budget(args: argparse.Namespace) -> None:
    from mmorepa.lab.analysis.budget import run

    cfg, out = load(args)
    command = shlex.join(['python', *sys.argv])
    options = dict(batch=args.batch, size=args.size, repeats=args.repeats, device=args.device)
    print(run(cfg, out, command=command, **options))


def load(args: argparse.Namespace):
    """The config, and the folder for results."""
    from mmorepa.engine.run import load_config
    from mmorepa.writing import check_folder

    cfg = load_config(args.config, args.out, args.cfg_options)
    return cfg, check_folder(cfg.work_dir)


def present(report, path: Path) -> None:
    """Print a report, and write its numbers and its picture: a path without an ending."""
    report.show()
    report.write_json(path.with_suffix('.json'))
    report.write_picture(path.with_suffix('.png'))
    print(f'wrote {path}.json and {path}.png')


def main() -> None:
    args = parse_args()
    args.command(args)


if __name__ == '__main__':
    cli.run(main)
