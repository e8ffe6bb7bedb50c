"""The data of a config."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import UserError, explained_building, first_line

#: What data is for, by the first part of the name that its loader has in a config.
USES = dict(train='training', val='validation', test='test')


def build_loader(cfg: Config, name: str, loader: ConfigDict | None = None, **fields) -> DataLoader:
    """A data loader of a config, for the CPU, in the order that its seed gives.

    The scope of the config becomes the default.

    Args:
        cfg (Config): Of any OpenMMLab library.
        name (str): ``'train_dataloader'``, ``'val_dataloader'`` or ``'test_dataloader'``.
        loader (ConfigDict, optional): What to build in the place of the one of that name.
        fields: Fields of the loader to change.

    Raises:
        UserError: If the config has none, its files are missing, or it does not build.
    """
    loader = cfg.get(name) if loader is None else loader
    if loader is None:
        raise UserError(f'{Path(cfg.filename).name} has no {name}: wanted one')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    fields = {'pin_memory': False, **fields}
    with explained_building(str(cfg.filename)):
        try:
            return Runner.build_dataloader(ConfigDict(loader, **fields), seed=seed_of(cfg))
        except FileNotFoundError as error:
            raise UserError(
                f'the {USES[name.partition("_")[0]]} data of the config is not there: '
                f'{first_line(error)}; give its place with --cfg-options '
                f'{name}.dataset.data_root=FOLDER'
            ) from None


def image_batches(
    loader: DataLoader, model: nn.Module, count: float = math.inf
) -> Iterator[Tensor]:
    """The images of a data loader, as the network takes them.

    Args:
        loader (DataLoader): From :func:`build_loader`.
        model (nn.Module): The model, whose data preprocessor is used.
        count (float): The number of images; there are fewer if the loader has fewer. Defaults to
            all of them.

    Yields:
        Tensor: A batch, (N, 3, H, W), float32, normalised.
    """
    for data in loader:
        images = model.data_preprocessor(data, False)['inputs'].float()
        yield images if len(images) <= count else images[: int(count)]
        count -= len(images)
        if count <= 0:
            return


def innermost(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The datasets inside of wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inside = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    if inside is None:
        yield dataset
    else:
        for item in inside:
            yield from innermost(item)


@contextmanager
def naming_broken_images() -> Iterator[None]:
    """A context in which OpenCV's error over an image that it cannot decode becomes one line.

    Raises:
        UserError: If an image is empty, or cannot be decoded.
    """
    try:
        yield
    except cv2.error as error:
        # Of a process that loads data: its traceback, what was wrong last.
        reason = str(error).strip().rpartition('\n')[2]
        raise UserError(
            f'an image of the data is empty or cannot be decoded ({reason}): look for it with '
            'find DATA_ROOT -size 0'
        ) from None


def seed_of(cfg: Config) -> int:
    """The seed of a config; 0 if it has none."""
    return cfg.get('randomness', {}).get('seed') or 0
