#!/usr/bin/env python
"""Evaluate a checkpoint of any form: python tools/test.py CONFIG CHECKPOINT."""

import argparse
import json
from pathlib import Path
from typing import Any

import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Evaluate a checkpoint in training, plain or deploy form; the form is found out'
    )
    cli.add_model(parser)
    parser.add_argument('--work-dir', help='where logs go')
    parser.add_argument('--out', metavar='FILE', help='write the metrics there, as JSON')
    cli.add_launcher_options(parser)
    return parser.parse_args()


def is_metric(value: Any) -> bool:
    """Whether JSON has it where a metric is: a number, null, or a list of them."""
    if isinstance(value, list):
        return all(map(is_metric, value))
    return value is None or isinstance(value, float)


def holds_metrics(path: Path) -> bool:
    """Whether a file is what an earlier test has written."""
    try:
        metrics = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return False
    return isinstance(metrics, dict) and all(map(is_metric, metrics.values()))


def main() -> None:
    args = parse_args()
    from mmorepa.config_files import bases_of
    from mmorepa.engine.run import load_config, test
    from mmorepa.errors import UserError
    from mmorepa.writing import check_out, write_json

    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    if args.out is not None:
        inputs = [args.config, *bases_of(args.config), args.checkpoint]
        out = check_out(args.out, inputs, force=True, done='tested')
        if out.exists() and not holds_metrics(out):
            raise UserError(f'{out} exists and holds no metrics: choose another name')
    metrics = test(cfg, args.checkpoint)
    if args.out is not None:
        write_json(metrics, args.out)


if __name__ == '__main__':
    cli.run(main)
