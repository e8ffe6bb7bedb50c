#!/usr/bin/env python
"""Draw predictions: python tools/predict.py CONFIG CHECKPOINT IMAGE... --out DIR."""

import argparse
from pathlib import Path

import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Predict images with a checkpoint of any form, and write pictures with labels, '
        "boxes or masks, drawn by the library's own visualizer"
    )
    cli.add_model(parser)
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='the image files')
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='gets a picture for each image'
    )
    parser.add_argument(
        '--score',
        type=cli.share,
        default=0.3,
        help='leave out boxes below this score (%(default)s)',
    )
    parser.add_argument('--force', action='store_true', help='replace pictures that are there')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmorepa.engine.prediction import predict_files
    from mmorepa.engine.run import load_config

    cfg = load_config(args.config, cfg_options=args.cfg_options)
    for path in predict_files(cfg, args.checkpoint, args.images, args.out, args.score, args.force):
        print(path)


if __name__ == '__main__':
    cli.run(main)
