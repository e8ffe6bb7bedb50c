#!/usr/bin/env python
"""Evaluate a checkpoint of any form: python tools/test.py CONFIG CHECKPOINT."""

import argparse
import json
from pathlib import Path

from mmorepa import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Evaluate a checkpoint in training, squeezed or deploy form; the form is '
        'found out'
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file')
    parser.add_argument('--work-dir', help='where logs go')
    parser.add_argument('--out', metavar='FILE', help='write the metrics there, as JSON')
    cli.add_launcher_options(parser)
    cli.add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmorepa.checkpoints.files import written_whole
    from mmorepa.engine.run import load_config, test

    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    metrics = test(cfg, args.checkpoint)
    if args.out:
        with written_whole(Path(args.out)) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
