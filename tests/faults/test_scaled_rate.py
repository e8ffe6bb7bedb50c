"""MMEngine's --auto-scale-lr, with the multipliers of this package and after a resume."""

import shutil

import pytest

from faults.common import differing, load
from mmorepa.engine.run import train

SCALED = {
    'auto_scale_lr': dict(base_batch_size=16, enable=False),
    'optim_wrapper.constructor': 'OREPAOptimWrapperConstructor',
    'optim_wrapper.paramwise_cfg': dict(stem=dict(lr_mult=0.1), _delete_=True),
    'param_scheduler': [],
}


def rates(checkpoint):
    return sorted({group['lr'] for group in checkpoint['optimizer']['param_groups']})


def test_rates(config, tmp_path):
    """Batches of 4 instead of 16: a quarter of each rate, once and not at every resume."""
    options = SCALED
    train(config(tmp_path / 'plain', epochs=1, **options))
    assert rates(load(tmp_path / 'plain' / 'epoch_1.pth')) == pytest.approx([0.001, 0.01])
    train(config(tmp_path / 'whole', **options), auto_scale_lr=True)
    whole = load(tmp_path / 'whole' / 'epoch_2.pth')
    assert rates(whole) == pytest.approx([0.00025, 0.0025])
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole' / 'epoch_1.pth', tmp_path / 'resumed')
    train(config(tmp_path / 'resumed', **options), resume=True, auto_scale_lr=True)
    assert differing(whole, load(tmp_path / 'resumed' / 'epoch_2.pth')) == []
