"""DDP and FSDP in two processes over gloo, without a GPU."""

import os
import shutil
import socket

import pytest
import torch

from faults.common import differing, in_processes, load
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import test as evaluate
from mmorepa.engine.run import train

STEP = 1e-4  # relative, of the largest change in four steps; float32 sums in another order

ONLINE = {'model.backbone.reparam': 'OREPA'}
FSDP = {
    'runner_type': 'FlexibleRunner',
    'strategy': dict(type='FSDPStrategy', state_dict_cfg='full'),
    **ONLINE,
}
#: How a training is distributed; the blocks of the last one are shared out.
KINDS = {'ddp': ONLINE, 'fsdp': FSDP, 'squeezed': {}}


def launched(rank, cfg, port, resume=False):
    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
    )
    cfg.launcher = 'pytorch'
    train(cfg, resume=resume)


def train_in_two(cfg, **options):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    assert in_processes(launched, cfg, port, *options.values(), count=2) == [0, 0]
    return load(f'{cfg.work_dir}/epoch_2.pth')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def trained(config, folder):
    """The last checkpoint of one training, by how it is distributed."""
    return {kind: train_in_two(config(folder / kind, **KINDS[kind])) for kind in KINDS}


def test_sharded_training_is_the_replicated_one(config, trained, folder):
    """Kernels are generated from parameters that FSDP keeps as pieces of one long vector."""
    ddp, fsdp = (trained[kind]['state_dict'] for kind in ('ddp', 'fsdp'))
    start = load(folder / 'ddp' / 'epoch_1.pth')['state_dict']
    names = [name for name, _ in build_model(config('unused', **ONLINE)).named_parameters()]
    assert list(ddp) == list(fsdp)
    for name in names:
        assert ddp[name].shape == fsdp[name].shape, name
        step = (ddp[name] - start[name]).abs().max()
        bound = STEP * step + 1e-6 * start[name].abs().max()
        assert (ddp[name] - fsdp[name]).abs().max() <= bound, name


@pytest.mark.parametrize('kind', KINDS)
def test_resuming(config, trained, folder, kind):
    resumed = folder / f'{kind}-resumed'
    resumed.mkdir()
    shutil.copy(folder / kind / 'epoch_1.pth', resumed)
    found = train_in_two(config(resumed, **KINDS[kind]), resume=True)
    assert differing(trained[kind], found) == []


def test_a_sharded_checkpoint_is_an_ordinary_one(config, trained, folder):
    metrics = evaluate(config(folder / 'test'), folder / 'fsdp' / 'epoch_2.pth')
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert torch.is_tensor(trained['fsdp']['state_dict']['head.fc.weight'])
