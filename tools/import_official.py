#!/usr/bin/env python
"""Import a checkpoint of the released code: python tools/import_official.py FILE OUT."""

import argparse
import os
from pathlib import Path

import cli

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'imagenet'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Turn a checkpoint of the released code (JUGGHM/OREPA_CVPR2022), or of '
        'DingXiaoH/RepVGG, into one of this package. Architecture, block and form are told from '
        'its keys and shapes. Writes OUT, and a config beside it where configs/imagenet has none.'
    )
    parser.add_argument('file', help='the released file, training or deploy form')
    cli.add_out(parser, 'the checkpoint to write')
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        '--deploy', action='store_true', help='convert to the deploy form, as convert.py does'
    )
    direction.add_argument(
        '--to-official',
        action='store_true',
        help='the way back: FILE is a training checkpoint of this package, OUT a released one',
    )
    cli.add_probe_size(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from mmorepa.checkpoints.official import import_export

    if args.to_official:
        report_export(import_export.export_official(args.file, args.out, args.force), args.out)
    else:
        report_import(
            import_export.import_official(
                args.file, args.out, CONFIGS, args.deploy, args.force, args.probe_size
            )
        )
    return 0


def report_import(done) -> None:
    checkpoint = done.checkpoint
    block = checkpoint.block
    if (block, checkpoint.form) == ('RepVGG', 'deploy'):
        block = 'RepVGG or OREPA_VGG, which are alike in this form'
    print(f'architecture: {checkpoint.architecture}')
    print(f'block: {block}')
    print(f'form: {checkpoint.form}')
    print(f'tensors: {len(checkpoint.state_dict)}')
    if spare := checkpoint.network.spare_rows:
        print(f'left out: one row of `vector` in {spare} blocks, which the release never reads')
    if done.conversion and checkpoint.form == 'training':
        before, after = done.conversion.parameters
        print(f'converted to deploy form: {before / 1e6:.2f} M parameters before, ', end='')
        print(f'{after / 1e6:.2f} M after')
        print(f'on a probe image: {done.conversion.agreement}')
    print(f'wrote {done.out}')
    config = Path(os.path.relpath(done.config))
    print(f'wrote {config}, the config that builds it' if done.wrote_config else f'config {config}')
    print(f'next: python tools/test.py {config} {done.out}')


def report_export(network, out) -> None:
    from mmorepa.checkpoints.official.networks import RELEASED

    print(f'architecture: {network.architecture}')
    print(f'block: {network.block}')
    print(f'tensors: {len(network.released_shapes())}')
    if network.spare_rows:
        print(
            f'one row of `vector` in {network.spare_rows} blocks, which the release never reads: '
            'zeros'
        )
    print(f'wrote {out}')
    if network.architecture not in RELEASED:
        print(f'{network.architecture} is not among what -a takes there: add it to build_model')
    print(f'next: python test.py train {out} -a {network.architecture} -t {network.block}')


if __name__ == '__main__':
    cli.run(main)
