"""Calibration images: the training set as the test pipeline sees it."""

import pytest
import torch

from mmorepa.checkpoints.models import build_model
from mmorepa.deploy.quantization.calibration import (
    calibration_images,
    calibration_loader,
    sample_image,
)
from mmorepa.errors import UserError

FEW = {'test_dataloader.batch_size': 8}


def test_images_are_the_training_sets_through_the_test_pipeline(config):
    cfg = config(**{'test_dataloader.batch_size': 32})
    model = build_model(cfg)
    batches = calibration_images(cfg, model, 80)
    assert [len(batch) for batch in batches] == [32, 32, 16]
    dataset = calibration_loader(cfg).dataset
    assert dataset.data_prefix == 'train'
    assert [step.type for step in dataset.pipeline] == ['LoadImageFromFile', 'Resize', 'PackInputs']
    # Normalised as for testing: pixels of 0 and 255 are the extremes.
    mean, std = (getattr(model.data_preprocessor, name).view(3, 1, 1) for name in ('mean', 'std'))
    pixels = torch.cat(batches) * std + mean
    assert pixels.shape == (80, 3, 32, 32)
    assert -0.01 <= pixels.min() and pixels.max() <= 255.01
    assert pixels.max() > 200


def test_seed_draws_them(config):
    model = build_model(config())
    first, again, other = (
        calibration_images(config(**{'randomness.seed': seed, **FEW}), model, 8)[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_there_may_be_fewer(config):
    cfg = config(**{'train_dataloader.dataset.indices': 20})
    assert sum(map(len, calibration_images(cfg, build_model(cfg), 1000))) == 20


@pytest.mark.parametrize('there, side', [(True, 32), (False, 224)])
def test_a_sample_wants_no_training_images(config, there, side):
    cfg = config()
    cfg.train_dataloader = None
    if not there:
        cfg.test_dataloader.dataset.data_root = 'nowhere'
    assert sample_image(cfg, build_model(cfg)).shape == (1, 3, side, side)


def test_mosaics_are_left_out(config):
    """As of YOLOX: they would get images that are packed already."""
    cfg = config()
    plain = cfg.train_dataloader.dataset
    mixed = dict(
        type='MultiImageMixDataset',
        dataset=dict(type='RepeatDataset', times=2, dataset=plain),
        pipeline=[dict(type='Mosaic')],
    )
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[mixed, plain])
    datasets = calibration_loader(cfg).dataset.datasets
    assert [dataset.type for dataset in datasets] == ['RepeatDataset', plain.type]
    pipeline = cfg.test_dataloader.dataset.pipeline
    assert datasets[0].dataset.pipeline == datasets[1].pipeline == pipeline


@pytest.mark.parametrize(
    'options, count, message',
    [
        ({}, 0, '0 calibration images: wanted at least 1'),
        ({'train_dataloader': None}, 8, 'has no train_dataloader: .* or choose mode dynamic'),
        ({'test_dataloader': None}, 8, 'has no test_dataloader'),
        (
            {'train_dataloader.dataset.data_root': 'nowhere'},
            8,
            'training data of the config is not there: .*train_dataloader.dataset.data_root=FOLDER',
        ),
    ],
    ids=['count', 'train', 'test', 'files'],
)
def test_what_is_missing_gets_one_line(config, options, count, message):
    cfg = config()
    for key, value in options.items():
        cfg.merge_from_dict({key: value}) if value else cfg.update({key: value})
    with pytest.raises(UserError, match=message) as raised:
        calibration_images(cfg, build_model(cfg), count)
    assert '\n' not in str(raised.value)
