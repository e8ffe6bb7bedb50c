"""Calibration images: of the training set, prepared as for testing."""

from __future__ import annotations

import copy

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from ...checkpoints.comparing import input_channels
from ...engine.data import build_loader, image_batches, innermost
from ...errors import UserError
from ..export.probes import random_images, test_images


def calibration_images(cfg: Config, model: nn.Module, count: int) -> list[Tensor]:
    """Images of the config's training set, through the test pipeline and the preprocessor.

    They are drawn at random, with the config's seed, because a folder may be sorted by class.

    Args:
        cfg (Config): A config with ``train_dataloader`` and ``test_dataloader``.
        model (nn.Module): The model of the config, whose data preprocessor is used.
        count (int): The number of images; there are fewer if the training set has fewer.

    Returns:
        list[Tensor]: Batches, (N, 3, H, W), float32, normalised. None is larger than the test set's
        batches; together they have ``count`` images.

    Raises:
        UserError: If there is no training set, its files are missing, or ``count`` is below one.
    """
    if count < 1:
        raise UserError(f'{count} calibration images: wanted at least 1')
    loader = build_loader(cfg, 'train_dataloader', calibration_loader(cfg))
    with torch.no_grad():
        return list(image_batches(loader, model, count))


def sample_image(cfg: Config, model: nn.Module) -> Tensor:
    """An image that gives an export its size: the test set's first one.

    Where the test set is not there, it is a random one of 224 x 224 pixels. The arguments are those
    of :func:`calibration_images`.
    """
    try:
        return test_images(cfg, model, 1)[0]
    except UserError:
        return random_images((224, 224), False, input_channels(model))[0]


def calibration_loader(cfg: Config) -> ConfigDict:
    """The config of the data loader: the training set with the test set's pipeline.

    Raises:
        UserError: If the config lacks one of them.
    """
    if cfg.get('train_dataloader') is None:
        raise UserError(
            'the config has no train_dataloader: calibration wants its images, '
            'or choose mode dynamic'
        )
    if cfg.get('test_dataloader') is None:
        raise UserError('the config has no test_dataloader: calibration wants its pipeline')
    pipeline = next(innermost(cfg.test_dataloader.dataset)).get('pipeline', [])
    loader = ConfigDict(copy.deepcopy(cfg.test_dataloader.to_dict()))
    loader.update(
        dataset=without_mixing(copy.deepcopy(cfg.train_dataloader.dataset)),
        sampler=dict(type='DefaultSampler', shuffle=True),
        num_workers=0,
        persistent_workers=False,
    )
    for dataset in innermost(loader.dataset):
        dataset.pipeline = copy.deepcopy(pipeline)
    return loader


def without_mixing(dataset: ConfigDict) -> ConfigDict:
    """A dataset without wrappers that have a pipeline, such as ``MultiImageMixDataset``.

    They make one image of several that are not packed yet, as Mosaic does.
    """
    if 'dataset' in dataset:
        inside = without_mixing(dataset['dataset'])
        if 'pipeline' in dataset:
            return inside
        dataset['dataset'] = inside
    elif 'datasets' in dataset:
        dataset['datasets'] = [without_mixing(item) for item in dataset['datasets']]
    return dataset
