#!/usr/bin/env python
"""Write scikit-learn's scanned digits as small ImageNet, COCO and Cityscapes sets.

Example: python tools/dataset_converters/digits.py data/digits
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli  # noqa: E402  (of tools/)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from mmorepa.datasets import digits

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_canvas_options(
        parser, digits.FORMATS, digits.DEFAULT_CANVASES, digits.DEFAULT_CANVAS_SIZE
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from mmorepa.datasets.digits import write_digits

    written = write_digits(args.out, args.formats, args.canvases, args.size, args.seed, args.force)
    cli.print_written(args.out, written)
    return 0


if __name__ == '__main__':
    cli.run(main)
