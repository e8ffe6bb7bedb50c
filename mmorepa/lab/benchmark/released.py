"""The released code, measured side by side: imported from a checkout that the user names.

Nothing of it is part of this project. Four functions of its ``convnet_utils`` are
called: ``switch_conv_bn_impl``, ``switch_deploy_flag``, ``build_model`` and ``conv_bn``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ...errors import UserError

#: Its block types, by the names here.
BLOCKS = {'none': 'base', 'DBB': 'DBB', 'OREPA': 'OREPA', 'RepVGG': 'RepVGG'}

#: Its networks, by the names here.
NETWORKS = {
    'resnet18': 'ResNet-18',
    'resnet34': 'ResNet-34',
    'resnet50': 'ResNet-50',
    'resnet101': 'ResNet-101',
    'resnext50': 'ResNeXt-50',
    'repvgg-a0': 'RepVGG-A0',
    'repvgg-a1': 'RepVGG-A1',
    'repvgg-a2': 'RepVGG-A2',
    'repvgg-b1': 'RepVGG-B1',
}


def check(path: str | None) -> None:
    """Make sure that a checkout is there.

    Raises:
        UserError: If not.
    """
    if path is None:
        raise UserError('a released subject wants --released PATH, a checkout of the released code')
    if not Path(path, 'convnet_utils.py').is_file():
        raise UserError(
            f'{path} holds no convnet_utils.py: give --released a checkout of JUGGHM/OREPA_CVPR2022'
        )


def build(path: str | None, network: str | None, block: str) -> nn.Module:
    """One of its networks in training form.

    Args:
        path (str): The checkout.
        network (str): A name of :data:`NETWORKS`.
        block (str): A name of :data:`BLOCKS`.

    Raises:
        UserError: If it does not have it, or is not there.
    """
    check(path)
    if network not in NETWORKS:
        raise UserError(f'the released code has no {network}: it has {", ".join(NETWORKS)}')
    kind = BLOCKS[block]
    if network.startswith('repvgg') and kind == 'OREPA':
        kind = 'OREPA_VGG'
    with _utils_of(path, kind) as utils:
        return utils.build_model(NETWORKS[network]).train()


def build_block(
    path: str | None, in_channels: int, out_channels: int, kernel_size: int
) -> nn.Module:
    """One of its OREPA blocks in training form; arguments as of ``nn.Conv2d``.

    Raises:
        UserError: If the checkout is not there.
    """
    check(path)
    with _utils_of(path, 'OREPA') as utils:
        padding = kernel_size // 2
        return utils.conv_bn(in_channels, out_channels, kernel_size, padding=padding).train()


@contextlib.contextmanager
def _utils_of(path: str, kind: str):
    """Its ``convnet_utils``, set to build blocks of one kind; what it prints is dropped."""
    with _modules_of(path), contextlib.redirect_stdout(io.StringIO()):
        utils = importlib.import_module('convnet_utils')
        utils.switch_deploy_flag(False)
        utils.switch_conv_bn_impl(kind)
        yield utils


@contextlib.contextmanager
def _modules_of(path: str) -> Iterator[None]:
    """Import from a folder, write nothing there, and leave no module behind under its name."""
    folder = Path(path).resolve()
    before, writes = dict(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes
        for name in [name for name in sys.modules if name not in before]:
            # A folder without __init__.py has no file, only a path.
            module = sys.modules[name]
            places = [getattr(module, '__file__', None), *getattr(module, '__path__', [])]
            if any(place and Path(place).is_relative_to(folder) for place in places):
                del sys.modules[name]
