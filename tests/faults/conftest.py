"""A training so small that it can be run, killed and run again many times."""

import copy
import itertools

import pytest
from PIL import Image

from faults.common import BATCH, IMAGES, SIZE
from mmorepa.datasets.digits import load_scans
from mmorepa.engine.run import load_config
from support import CONFIG

_numbers = itertools.count()


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A folder of scans, three classes of them, for training and for evaluation."""
    folder = tmp_path_factory.mktemp('digits')
    scans, labels = load_scans()
    for split in ('train', 'val'):
        for label in range(3):
            target = folder / split / str(label)
            target.mkdir(parents=True)
            for i, scan in enumerate(scans[labels == label][: IMAGES // 3]):
                Image.fromarray(scan.astype('uint8') * 15).convert('RGB').save(target / f'{i}.png')
    return folder


@pytest.fixture(scope='session')
def config(digits):
    """Gives the config of a narrow OREPA ResNet-18 that draws at random wherever it can."""

    base = load_config(CONFIG)

    def load(work_dir, epochs=2, **options):
        pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=SIZE),
            dict(type='RandomCrop', crop_size=SIZE, padding=4),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]
        own = {
            'model.backbone.base_channels': 4,
            'model.backbone.stem_channels': 4,
            'model.backbone.drop_path_rate': 0.2,
            'model.head.in_channels': 32,
            'model.head.num_classes': 3,
            'model.data_preprocessor.num_classes': 3,
            'model.train_cfg': dict(augments=dict(type='Mixup', alpha=0.5)),
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': 1,
            'train_dataloader.dataset.pipeline': pipeline,
            'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, max_keep_ckpts=-1),
            'default_hooks.logger': dict(type='LoggerHook', interval=1),
            'param_scheduler': [dict(type='CosineAnnealingLR', T_max=12, by_epoch=False)],
            'optim_wrapper.optimizer.lr': 0.01,
            # MMEngine shares logs and message hubs between Runners of one name.
            'experiment_name': f'faults_{next(_numbers)}',
            'log_level': 'ERROR',
        }
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            own |= {
                f'{loader}.batch_size': BATCH,
                f'{loader}.num_workers': 0,
                f'{loader}.persistent_workers': False,
                f'{loader}.dataset.data_root': str(digits),
            }
        cfg = copy.deepcopy(base)
        cfg.merge_from_dict(copy.deepcopy(own | options))
        cfg.work_dir = str(work_dir)
        return cfg

    return load


@pytest.fixture(scope='session')
def iter_based():
    """Options that make a training one of iterations."""
    return {
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=3),
        'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True),
        'default_hooks.checkpoint': dict(interval=2, by_epoch=False, max_keep_ckpts=-1),
    }
