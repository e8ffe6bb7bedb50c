"""Write docs/parameters.md: python docs/parameters.py.

Networks are built on torch's meta device, without memory and without time for initial values.
"""

import copy
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from mmengine.config import Config, config, utils
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmorepa.checkpoints.conversion import count_blocks, count_parameters
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import switch_to_deploy
from mmorepa.writing import written_whole

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
PAGE = Path(__file__).with_suffix('.md')
#: Folders of configs, with what to call them.
FOLDERS = {
    'imagenet': 'ImageNet-1k',
    'imagenet/ablations': 'ImageNet-1k, ablations',
    'coco': 'COCO',
    'cityscapes': 'Cityscapes',
    'digits': 'Digits',
    'fashion': 'Fashion-MNIST',
}
HEAD = """\
# Parameters

The number of parameters of every config's model, heads included, in its three forms. *Training*
counts the branches and everything else that the checkpoint holds, but not the kernels that
`mode='squeezed'` keeps as well. In the *plain* form each block is one plain convolution, so it
has the size of the plain network. In the *deploy* form the BatchNorms are folded too. *Blocks* is
the number of re-parameterised convolutions. `python docs/parameters.py` writes this page.
"""


#: Height and width in pixels of the images that the classifiers of a folder are tested with.
SIDES = {'imagenet': 224, 'imagenet/ablations': 224, 'digits': 48, 'fashion': 32}


class Size(NamedTuple):
    """Parameters of a model in its three forms, and its number of blocks."""

    training: int
    plain: int
    deploy: int
    blocks: int


@contextmanager
def quick_configs() -> Iterator[None]:
    """Looks a library up once, and reads a file once, not for every config that is based on it."""
    read = functools.cache(Config._file2dict)

    def read_once(*args, **kwargs):
        return copy.deepcopy(read(*args, **kwargs))

    with (
        mock.patch.object(config, 'is_installed', functools.cache(config.is_installed)),
        mock.patch.object(utils, 'load', functools.cache(utils.load)),
        mock.patch.object(Config, '_file2dict', staticmethod(read_once)),
    ):
        yield


def build(cfg: Config) -> nn.Module:
    """The model of a config, on the meta device."""
    # The libraries make lists of numbers with torch.linspace.
    lists = functools.partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch.object(torch, 'linspace', lists):
        return build_model(cfg)


def size(cfg: Config, known: dict[str, Size]) -> Size:
    """The size of a config's model; many configs differ in the schedule or in the block alone."""
    key = repr(cfg.model)
    if key not in known:
        known[key] = count(cfg, known)
    return known[key]


def count(cfg: Config, known: dict[str, Size]) -> Size:
    """Builds a config's model to know its size."""
    cfg = copy.deepcopy(cfg)
    if 'mode' in (cfg.model.get('backbone', {}).get('reparam') or {}):
        cfg.model.backbone.reparam.pop('mode')  # or a kernel is generated for each block
    model = build(cfg)
    training, blocks = count_parameters(model), count_blocks(model)
    if blocks:
        # Kernels are not generated on the meta device.
        plain = copy.deepcopy(cfg)
        plain.model.backbone.reparam = None
        return size(plain, known)._replace(training=training, blocks=blocks)
    return Size(training, training, count_parameters(switch_to_deploy(model)), blocks=0)


def multiply_adds(cfg: Config, side: int, known: dict[str, int]) -> int:
    """The multiply-adds of a classifier's convolutions and linear layers in deploy form.

    OpenMMLab's metafiles call them FLOPs.

    Args:
        cfg (Config): A config of mmpretrain.
        side (int): Height and width of the image in pixels.
        known (dict[str, int]): What was counted so far; networks differ in their blocks alone.
    """
    plain = copy.deepcopy(cfg)
    if 'reparam' in plain.model.backbone:
        plain.model.backbone.reparam = None
    key = f'{side} {plain.model}'
    if key not in known:
        model = switch_to_deploy(build(plain))
        with torch.device('meta'), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side), mode='tensor')
        known[key] = counter.get_total_flops() // 2
    return known[key]


def config_files(folder: str) -> list[Path]:
    """The configs of one of :data:`FOLDERS`, by name, numbers in it by size."""

    def key(path: Path) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', path.stem)]

    return sorted((CONFIGS / folder).glob('*.py'), key=key)


def page(sizes: dict[Path, Size]) -> str:
    """The page, from the size of each config's model."""
    lines = [HEAD]
    for folder, title in FOLDERS.items():
        lines += [f'## {title}', '']
        lines += ['| config | training | plain | deploy | blocks |', '|---|--:|--:|--:|--:|']
        for path in config_files(folder):
            link = f'[{path.stem}](../configs/{folder}/{path.name})'
            found = sizes[path]
            numbers = ' | '.join(f'{number:,}' for number in found)
            lines.append(f'| {link} | {numbers} |')
        lines.append('')
    return '\n'.join(lines[:-1]) + '\n'


def all_sizes() -> dict[Path, Size]:
    """The size of each config's model."""
    sizes, known = {}, {}
    with quick_configs():
        for path in (path for folder in FOLDERS for path in config_files(folder)):
            sizes[path] = size(Config.fromfile(path), known)
    return sizes


def main() -> None:
    """Write the page."""
    with written_whole(PAGE) as temporary:
        temporary.write_text(page(all_sizes()), encoding='utf-8')


if __name__ == '__main__':
    main()
