"""Runs a command of the documentation, but with less to do: ``python smaller.py SCRIPT ARG ...``.

Schedules keep their length, so that checkpoints get the names that the documentation has for them;
the network has fewer channels, an epoch fewer images. Everything runs in one process.
"""

import os
import runpy
import sys
from pathlib import Path

from mmengine.config import Config

sys.path.append(str(Path(__file__).parents[1]))
from downstream import narrow  # noqa: E402

#: Detection and segmentation pictures to be made, for training and for validation.
CANVASES = ['8', '4']


def fewer(cfg: Config) -> dict:
    """Options for a config on the digits."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = {f'{loader}.num_workers': 0 for loader in loaders}
    options |= {f'{loader}.persistent_workers': False for loader in loaders}
    # Only the last: MMEngine formats the whole config anew for each.
    options['default_hooks.checkpoint.interval'] = options['train_cfg.val_interval'] = 10
    if cfg.default_scope != 'mmpretrain':
        return options | narrow(cfg)
    options['model.backbone.base_channels'] = options['model.backbone.stem_channels'] = 4
    options['model.head.in_channels'] = 32
    # One batch with images of all classes.
    options['train_dataloader.dataset.indices'] = list(range(0, 1438, 23))
    return options


def arguments(script: str, words: list[str]) -> list[str]:
    """What to add to a command."""
    if script.endswith('digits.py'):
        return ['--canvases', *CANVASES]
    sys.argv = [script, *words]
    given = vars(runpy.run_path(script)['parse_args']())
    if 'cfg_options' not in given:
        return []
    options = fewer(Config.fromfile(given['config'])).items()
    return ['--cfg-options', *[f'{key}={value}'.replace(' ', '') for key, value in options]]


if __name__ == '__main__':
    _, script, *words = sys.argv
    sys.path[0] = os.path.dirname(os.path.realpath(script))
    if 'def parse_args' in Path(script).read_text(encoding='utf-8'):
        words += arguments(script, words)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name='__main__')
