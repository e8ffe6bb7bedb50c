"""DDP and FSDP in two processes over gloo, without a GPU."""

import itertools
import os
import shutil
import signal
import socket

import pytest
import torch

from faults.common import BATCH, IMAGES, differing, in_processes, load
from mmorepa import SqueezedTraining
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import test as evaluate
from mmorepa.engine.run import train

#: Relative, of the largest change in two or four steps: float32 sums in another order.
STEP = 1e-4
SQUEEZED_STEP = 5e-3  # gradients of kernels are summed before they are pulled back

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


def in_two(target, cfg, *options):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    return in_processes(target, cfg, port, *options, count=2)


def train_in_two(cfg, resume=False):
    assert in_two(launched, cfg, resume) == [0, 0]
    return load(f'{cfg.work_dir}/epoch_2.pth')


def launched_and_killed(rank, cfg, port, method, call):
    """Train, and let the second process be killed where it calls a method for that time."""
    usual, calls = getattr(SqueezedTraining, method), itertools.count(1)

    def dying(*arguments):
        if rank == 1 and next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(*arguments)

    setattr(SqueezedTraining, method, dying)
    launched(rank, cfg, port)


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


def test_each_process_takes_its_share_of_the_images(trained):
    steps = -(-IMAGES // (2 * BATCH))
    assert {checkpoint['meta']['iter'] for checkpoint in trained.values()} == {2 * steps}


@pytest.mark.parametrize('kind', KINDS)
def test_resuming(config, trained, folder, kind):
    resumed = folder / f'{kind}-resumed'
    resumed.mkdir()
    shutil.copy(folder / kind / 'epoch_1.pth', resumed)
    found = train_in_two(config(resumed, **KINDS[kind]), resume=True)
    assert differing(trained[kind], found) == []


def test_going_on_in_two_after_one(config, folder):
    """Kernels shared out or not, the steps are the same ones."""
    one = folder / 'one'
    train(config(one, epochs=1, **ONLINE))
    start = load(one / 'epoch_1.pth')['state_dict']
    found = {}
    for kind in ('ddp', 'squeezed'):
        two = folder / f'{kind}-after-one'
        two.mkdir()
        shutil.copy(one / 'epoch_1.pth', two)
        found[kind] = train_in_two(config(two, **KINDS[kind]), resume=True)['state_dict']
    for name, parameter in build_model(config('unused', **ONLINE)).named_parameters():
        step = (found['ddp'][name] - start[name]).abs().max()
        assert step > 0 or not parameter.requires_grad, name
        bound = SQUEEZED_STEP * step + 1e-6 * start[name].abs().max()
        assert (found['ddp'][name] - found['squeezed'][name]).abs().max() <= bound, name


@pytest.mark.parametrize(
    'method, call',
    [('pull_back', 3), ('_generate', 25), ('_gather_state', 2)],
    ids=['before a step', 'between two kernels', 'before a checkpoint'],
)
def test_a_process_is_killed(config, trained, tmp_path, method, call):
    """The other one ends too, what is on the disk is whole, and training goes on from it."""
    cfg = config(tmp_path)
    assert in_two(launched_and_killed, cfg, method, call) == [1, -signal.SIGKILL]
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    assert differing(trained['squeezed'], train_in_two(config(tmp_path), resume=True)) == []


def test_a_sharded_checkpoint_is_an_ordinary_one(config, trained, folder):
    metrics = evaluate(config(folder / 'test'), folder / 'fsdp' / 'epoch_2.pth')
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert torch.is_tensor(trained['fsdp']['state_dict']['head.fc.weight'])
