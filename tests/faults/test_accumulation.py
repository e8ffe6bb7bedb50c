"""Gradient accumulation and clipping."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from faults.common import SIZE, load
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import train

STEP = 1e-4  # relative, of the largest change; float32 sums in another order
#: Small, for the network has no statistics of a batch to keep it in bounds.
LEARNING_RATE = 1e-6
NORM = 1e-3  # relative, of a gradient's norm

#: The batches in order, statistics fixed, nothing drawn: what is left is the sum of gradients.
PLAIN = {
    'train_dataloader.sampler.shuffle': False,
    'model.backbone.norm_eval': True,
    'model.backbone.drop_path_rate': 0.0,
    'model.train_cfg': None,
    'param_scheduler': [],
    'optim_wrapper.optimizer': dict(
        type='SGD', lr=LEARNING_RATE, momentum=0.9, weight_decay=0.0, _delete_=True
    ),
    'optim_wrapper.paramwise_cfg': None,
}


@pytest.fixture
def without_augmentation(config, tmp_path):
    """A config with nothing random, that begins with statistics that fit the images."""

    def load_config(work_dir, **options):
        cfg = config(work_dir, **PLAIN, **options)
        torch.manual_seed(0)
        model = build_model(cfg)
        model.backbone.norm_eval = False
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = None
        with torch.no_grad():
            model.train().backbone(torch.randn(32, 3, SIZE, SIZE))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')
        cfg.load_from = str(tmp_path / 'start.pth')
        pipeline = cfg.train_dataloader.dataset.pipeline
        cfg.train_dataloader.dataset.pipeline = [
            step for step in pipeline if 'Random' not in step.type
        ]
        return cfg

    return load_config


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB'])
def test_two_batches_are_one_of_double_size(without_augmentation, tmp_path, reparam):
    block = {'model.backbone.reparam': reparam}
    double = {'train_dataloader.batch_size': 6, 'train_cfg.max_epochs': 1}
    halves = {
        'train_dataloader.batch_size': 3,
        'train_cfg.max_epochs': 1,
        'optim_wrapper.accumulative_counts': 2,
    }
    train(without_augmentation(tmp_path / 'double', **block, **double))
    train(without_augmentation(tmp_path / 'halves', **block, **halves))
    start, one, two = (
        load(tmp_path / path)['state_dict']
        for path in ('start.pth', 'double/epoch_1.pth', 'halves/epoch_1.pth')
    )
    moved = 0
    for name, value in one.items():
        if not value.is_floating_point():
            continue
        step = (value - start[name]).abs().max()
        rounding = 1e-6 * value.abs().max()
        moved += bool(step > 10 * rounding)
        assert (value - two[name]).abs().max() <= STEP * step + rounding, name
    assert moved > 100


def test_clipping(without_augmentation, tmp_path):
    """After one step the momentum is the gradient that was taken."""
    norms = {}
    for name, limit in (('free', 1e9), ('clipped', 0.01)):
        options = {
            'train_dataloader.batch_size': 12,
            'train_cfg.max_epochs': 1,
            'optim_wrapper.clip_grad': dict(max_norm=limit),
        }
        train(without_augmentation(tmp_path / name, **options))
        state = load(tmp_path / name / 'epoch_1.pth')['optimizer']['state']
        norms[name] = torch.cat([s['momentum_buffer'].flatten() for s in state.values()]).norm()
    assert norms['free'] > 1
    assert norms['clipped'] == pytest.approx(0.01, rel=NORM)
