#!/usr/bin/env python
"""Put Fashion-MNIST in place, as MNIST with a part held out and as small COCO and Cityscapes sets.

Example: python tools/dataset_converters/fashion_mnist.py data/fashion
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli  # noqa: E402  (of tools/)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from mmorepa.datasets import fashion

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_canvas_options(
        parser, fashion.FORMATS, fashion.DEFAULT_CANVASES, fashion.DEFAULT_CANVAS_SIZE
    )
    parser.add_argument(
        '--source',
        default=fashion.default_source(),
        metavar='PLACE',
        help='folder or URL with the four .gz files (%(default)s)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from mmorepa.datasets.fashion import write_fashion

    written = write_fashion(
        args.out, args.formats, args.canvases, args.size, args.seed, args.force, args.source
    )
    cli.print_written(args.out, written)
    return 0


if __name__ == '__main__':
    cli.run(main)
