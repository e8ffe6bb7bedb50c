"""Mixed precision on the CPU: bfloat16, and float16 with loss scaling."""

import pytest
import torch

from faults.common import SHALLOW, load
from mmorepa.engine.cpu_amp import CPUAmpOptimWrapper
from mmorepa.engine.run import train
from mmorepa.errors import UserError

#: Relative difference of a step to that in float32, after ten layers with 8 and 11 bits.
CLOSE = {'bfloat16': 0.2, 'float16': 0.05}

#: One step of plain gradient descent on the same batch, where BatchNorms see values enough.
ONE_STEP = {
    # Numbers of another type are drawn in another way.
    'model.backbone.drop_path_rate': 0.0,
    **SHALLOW,
    'train_dataloader.batch_size': 12,
    'train_cfg.max_epochs': 1,
    'param_scheduler': [],
    'optim_wrapper.optimizer': dict(type='SGD', lr=0.01, weight_decay=0.0, _delete_=True),
}


@pytest.fixture(scope='module')
def exact(config, tmp_path_factory):
    """Parameters after the step in float32."""
    folder = tmp_path_factory.mktemp('float32')
    train(config(folder, **ONE_STEP))
    return load(folder / 'epoch_1.pth')['state_dict']


@pytest.fixture(scope='module')
def before(config, tmp_path_factory):
    """Parameters before the step."""
    folder = tmp_path_factory.mktemp('before')
    cfg = config(folder, **ONE_STEP)
    cfg.optim_wrapper.optimizer.lr = 0.0
    train(cfg)
    return load(folder / 'epoch_1.pth')['state_dict']


@pytest.mark.parametrize('dtype', CLOSE)
def test_step_is_close_to_that_in_float32(config, exact, before, tmp_path, dtype):
    precision = {'optim_wrapper.dtype': dtype, 'optim_wrapper.loss_scale': dict(init_scale=2.0**8)}
    cfg = config(tmp_path, **ONE_STEP, **precision)
    train(cfg, amp=True)
    after = load(tmp_path / 'epoch_1.pth')['state_dict']
    steps, expected = [], []
    for name, value in after.items():
        if value.is_floating_point() and 'running' not in name:
            assert value.dtype == torch.float32
            steps.append((value - before[name]).flatten())
            expected.append((exact[name] - before[name]).flatten())
    steps, expected = torch.cat(steps), torch.cat(expected)
    assert (steps - expected).norm() < CLOSE[dtype] * expected.norm()
    assert not torch.equal(steps, expected)


def test_an_overflow_skips_the_step_and_halves_the_scale(config, before, tmp_path):
    options = {
        **ONE_STEP,
        'optim_wrapper.dtype': 'float16',
        'optim_wrapper.loss_scale': dict(init_scale=2.0**60),
    }
    train(config(tmp_path, **options), amp=True)
    checkpoint = load(tmp_path / 'epoch_1.pth')
    assert checkpoint['optimizer']['loss_scaler']['scale'] == 2.0**59
    for name, value in checkpoint['state_dict'].items():
        if 'running' not in name:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(dtype='int8'), "dtype='int8': wanted 'bfloat16' or 'float16'"),
        (dict(loss_scale='static'), "loss_scale is 'static': wanted 'dynamic', a float"),
    ],
)
def test_wrong_options(options, message):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(UserError, match=message):
        CPUAmpOptimWrapper(optimizer=optimizer, **options)
