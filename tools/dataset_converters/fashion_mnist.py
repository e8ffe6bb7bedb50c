#!/usr/bin/env python
"""Put Fashion-MNIST in place, as MNIST with a part held out and as small COCO and Cityscapes sets.

Example: python tools/dataset_converters/fashion_mnist.py data/fashion
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmorepa import cli
from mmorepa.datasets.fashion import (
    DEFAULT_CANVAS_SIZE,
    DEFAULT_CANVASES,
    FORMATS,
    default_source,
    write_fashion,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder that gets one folder a format')
    parser.add_argument(
        '--formats', nargs='+', choices=FORMATS, default=FORMATS, help='sets to write (all)'
    )
    parser.add_argument(
        '--source',
        default=default_source(),
        metavar='PLACE',
        help='folder or URL with the four .gz files (%(default)s)',
    )
    parser.add_argument(
        '--canvases',
        nargs=2,
        type=int,
        metavar=('TRAIN', 'VAL'),
        default=DEFAULT_CANVASES,
        help='number of COCO and Cityscapes pictures (%(default)s)',
    )
    parser.add_argument(
        '--size',
        type=int,
        default=DEFAULT_CANVAS_SIZE,
        help='width and height of those pictures in pixels (%(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the scattering (%(default)s)')
    parser.add_argument(
        '--force', action='store_true', help='rewrite sets made with other arguments'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    written = write_fashion(
        args.out, args.formats, args.canvases, args.size, args.seed, args.force, args.source
    )
    for name, new in written.items():
        state = 'written' if new else 'there already, made with the same arguments'
        print(f'{args.out / name}: {state}')
    return 0


if __name__ == '__main__':
    cli.run(main)
