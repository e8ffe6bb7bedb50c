"""A training that was resumed equals, bit for bit on the CPU, one that was not stopped."""

import shutil

import pytest
import torch

from faults.common import differing, in_processes, load
from mmorepa.engine import run
from mmorepa.engine.run import train

EMA = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
WORKERS = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}
REPVGG = {
    'model.backbone': dict(_delete_=True, type='OREPARepVGG', arch='A0', base_channels=4),
    'model.head.in_channels': 80,
}
#: Three iterations a pass, so that a pass ends in the middle of an accumulation.
AMP = {
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.dtype': 'float16',
    'optim_wrapper.loss_scale': dict(init_scale=2.0**10, growth_interval=2),
    'optim_wrapper.accumulative_counts': 2,
    'optim_wrapper.clip_grad': dict(max_norm=1.0),
}
CASES = {
    'EMA': EMA,
    'DBB, two workers that stay': {'model.backbone.reparam': 'DBB', **WORKERS},
    'AMP, accumulation': AMP,
}


def train_alone(rank, cfg, resume=False):
    train(cfg, resume=resume)


def train_and_resume(config, tmp_path, first, last, **options):
    """The last checkpoint of a training, and of one that goes on from its first.

    In processes of their own, with which the workers of a loader end.
    """
    assert in_processes(train_alone, config(tmp_path / 'whole', **options)) == [0]
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole' / first, tmp_path / 'resumed')
    assert in_processes(train_alone, config(tmp_path / 'resumed', **options), True) == [0]
    return (load(tmp_path / folder / last) for folder in ('whole', 'resumed'))


@pytest.mark.parametrize('case', CASES)
def test_epochs(config, tmp_path, case):
    whole, resumed = train_and_resume(config, tmp_path, 'epoch_1.pth', 'epoch_2.pth', **CASES[case])
    assert differing(whole, resumed) == []


@pytest.mark.parametrize('options', [EMA, WORKERS], ids=['EMA', 'two workers that stay'])
def test_iterations(config, iter_based, tmp_path, options):
    whole, resumed = train_and_resume(
        config, tmp_path, 'iter_2.pth', 'iter_4.pth', **iter_based, **options
    )
    assert differing(whole, resumed) == []


def test_seed_of_a_training_that_was_given_none(config, tmp_path):
    whole, resumed = train_and_resume(
        config, tmp_path, 'epoch_1.pth', 'epoch_2.pth', randomness=dict(seed=None), **REPVGG
    )
    assert differing(whole, resumed) == []


def test_without_seeding_by_place_it_would_not(config, tmp_path, monkeypatch):
    """What MMEngine restores by itself is not enough, so that the tests above can fail."""
    monkeypatch.setattr(run, 'add_hooks', lambda *args: None)
    monkeypatch.setattr(run, 'seed_samples', lambda cfg: None)
    whole, resumed = train_and_resume(config, tmp_path, 'epoch_1.pth', 'epoch_2.pth')
    assert differing(whole, resumed, ['state_dict'])


def test_the_state_that_is_compared_is_there(config, tmp_path):
    options = {**EMA, **AMP}
    train(config(tmp_path, **options))
    checkpoint = load(tmp_path / 'epoch_1.pth')
    assert checkpoint['accumulated_gradients']
    assert checkpoint['ema_state_dict']['steps'] == 3
    assert checkpoint['optimizer']['loss_scaler']['scale'] > 0
    assert checkpoint['param_schedulers'][0]['last_step'] == 3
    momenta = [s['momentum_buffer'] for s in checkpoint['optimizer']['state'].values()]
    assert all(isinstance(m, torch.Tensor) for m in momenta)
