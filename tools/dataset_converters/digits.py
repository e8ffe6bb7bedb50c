#!/usr/bin/env python
"""Write scikit-learn's scanned digits as small ImageNet, COCO and Cityscapes sets.

Example: python tools/dataset_converters/digits.py data/digits
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmorepa import cli
from mmorepa.datasets.digits import (
    DEFAULT_CANVAS_SIZE,
    DEFAULT_CANVASES,
    FORMATS,
    write_digits,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_canvas_options(parser, FORMATS, DEFAULT_CANVASES, DEFAULT_CANVAS_SIZE)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    written = write_digits(args.out, args.formats, args.canvases, args.size, args.seed, args.force)
    cli.print_written(args.out, written)
    return 0


if __name__ == '__main__':
    cli.run(main)
