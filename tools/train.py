#!/usr/bin/env python
"""Train a model: python tools/train.py CONFIG."""

import argparse

import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='the config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or without one from the newest whole one in the work dir',
    )
    parser.add_argument(
        '--init',
        metavar='CHECKPOINT',
        help='let the backbone start from CHECKPOINT, of a plain network or of one with blocks: a '
        'path, a URL, or a name such as torchvision://resnet50',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate on the way')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the rate with the real batch size'
    )
    cli.add_launcher_options(parser)
    cli.add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmorepa.engine.run import load_config, train

    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    validate = not args.no_validate
    train(cfg, args.resume, args.amp, args.auto_scale_lr, validate, args.init)


if __name__ == '__main__':
    cli.run(main)
