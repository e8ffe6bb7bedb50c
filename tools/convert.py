#!/usr/bin/env python
"""Convert a checkpoint for deployment: python tools/convert.py CONFIG CHECKPOINT OUT."""

import argparse

import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Squeeze the blocks of a checkpoint into plain convolutions and fold the '
        'BatchNorms. Writes OUT, and a config that fits it beside it.'
    )
    cli.add_model(parser)
    cli.add_out(parser, 'the checkpoint to write')
    parser.add_argument(
        '--keep-bn',
        action='store_true',
        help='squeeze only: the form of the plain network, for stock backbones',
    )
    parser.add_argument(
        '--verify',
        action='store_true',
        help='also evaluate both checkpoints on the test set of the config',
    )
    cli.add_probe_size(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from mmorepa.checkpoints.conversion import convert
    from mmorepa.engine.run import load_config, test

    cfg = load_config(args.config, cfg_options=args.cfg_options)
    done = convert(cfg, args.checkpoint, args.out, args.keep_bn, args.force, args.probe_size)
    if done.source_form == done.form:
        print(
            f'{args.checkpoint} is in {done.form} form already: '
            'nothing to convert, written out as it is'
        )
    if done.ema:
        print('weights: the exponential moving average that EMAHook kept')
    before, after = done.parameters
    print(f'{done.blocks} blocks squeezed, {done.norms} BatchNorms folded')
    print(f'parameters: {before / 1e6:.2f} M before, {after / 1e6:.2f} M after')
    before, after = done.bytes
    print(f'weights: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after')
    print(f'on a probe image: {done.agreement}')
    print(f'wrote {done.out} and {done.config}')
    if not args.verify:
        return 0

    metrics = [test(cfg, checkpoint) for checkpoint in (args.checkpoint, args.out)]
    print(f'on the test set: {metrics[0]} before, {metrics[1]} after')
    return 0


if __name__ == '__main__':
    cli.run(main)
