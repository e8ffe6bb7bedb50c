"""A small network that has learned the digits, and the config it was trained with."""

import copy
import functools

import pytest
import torch

from mmorepa.checkpoints.conversion import convert
from mmorepa.datasets.digits import write_digits
from mmorepa.engine.run import load_config, train
from support import CONFIG

#: Of the images, in pixels.
SIDE = 32

#: Two branches are enough for a kernel to be generated.
REPARAM = dict(type='OREPA', branches=['original', 'average'])

OPTIONS = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 64,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=1.0, end_factor=0.01, end=69, by_epoch=False)
    ],
    'optim_wrapper.optimizer.lr': 0.05,
    'train_cfg.max_epochs': 3,
    'train_cfg.val_interval': 3,
    'default_hooks.checkpoint.interval': 3,
}


@pytest.fixture(scope='session')
def digits_folder(tmp_path_factory):
    """The digits as an ImageNet-style folder."""
    folder = tmp_path_factory.mktemp('digits')
    write_digits(folder, ['imagenet'], image_size=SIDE)
    return folder / 'imagenet'


@pytest.fixture(scope='session')
def config(digits_folder):
    """Gives a config with a narrow network on the digits, with fields changed."""

    read = functools.cache(load_config)

    def load(path=CONFIG, work_dir='work_dirs', **options):
        data = {}
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            data[f'{loader}.dataset.data_root'] = str(digits_folder)
            data[f'{loader}.num_workers'] = 0
            data[f'{loader}.persistent_workers'] = False
            data[f'{loader}.dataset.pipeline.1.scale'] = SIDE
        data['train_dataloader.dataset.pipeline.2.crop_size'] = SIDE
        cfg = copy.deepcopy(read(path))
        cfg.merge_from_dict({**OPTIONS, **data, **options})
        cfg.work_dir = str(work_dir)
        if path == CONFIG:
            cfg.model.backbone.reparam = REPARAM
        return cfg

    return load


@pytest.fixture(scope='session')
def checkpoint(config, tmp_path_factory):
    """What three epochs of training left."""
    folder = tmp_path_factory.mktemp('trained')
    train(config(work_dir=folder), validate=False)
    return folder / 'epoch_3.pth'


@pytest.fixture(scope='session')
def plain(config, checkpoint):
    """The plain form of it."""
    return convert(
        config(), checkpoint, checkpoint.with_name('plain.pth'), keep_bn=True, probe_size=SIDE
    ).out


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for every test."""
    torch.manual_seed(0)
