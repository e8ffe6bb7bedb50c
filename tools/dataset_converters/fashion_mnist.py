#!/usr/bin/env python
"""Put Fashion-MNIST in place, as MNIST with a part held out and as small COCO and Cityscapes sets.

Example: python tools/dataset_converters/fashion_mnist.py data/fashion
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
    cli.add_canvas_options(parser, FORMATS, DEFAULT_CANVASES, DEFAULT_CANVAS_SIZE)
    parser.add_argument(
        '--source',
        default=default_source(),
        metavar='PLACE',
        help='folder or URL with the four .gz files (%(default)s)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    written = write_fashion(
        args.out, args.formats, args.canvases, args.size, args.seed, args.force, args.source
    )
    cli.print_written(args.out, written)
    return 0


if __name__ == '__main__':
    cli.run(main)
