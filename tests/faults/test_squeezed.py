"""Squeezed training whose blocks are shared out, and what goes on from its checkpoints."""

import os
import re
import shutil
import socket

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from faults.common import SHALLOW, differing, in_processes, load
from mmorepa.engine.run import train
from mmorepa.errors import UserError

NEAR = 1e-4  # relative, float32, two steps

#: A checkpoint, a validation, the last checkpoint; the moving average is saved and evaluated.
OPTIONS = {
    **SHALLOW,
    'model.backbone.drop_path_rate': 0.0,
    'custom_hooks': [dict(type='EMAHook', momentum=0.3)],
    'optim_wrapper.clip_grad': dict(max_norm=1.0),
}
PARTS = ('state_dict', 'ema_state_dict', 'optimizer')
UNSHARED = {'default_hooks.squeezed_training.shard': False}


@HOOKS.register_module(force=True)
class OverflowHook(Hook):
    """Makes the gradient of one kernel infinite in the second step."""

    def before_train(self, runner):
        def overflow(gradient):
            return gradient * float('inf') if runner.iter == 1 else gradient

        runner.model.module.backbone.layer1[0].conv1.weight.register_hook(overflow)


def launched(rank, cfg, port, count, notes, resume):
    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
    )
    cfg.launcher = 'pytorch'
    try:
        train(cfg, resume=resume)
    except UserError as error:
        notes.mkdir(exist_ok=True)
        (notes / f'{rank}.txt').write_text(str(error))


def train_in(cfg, folder, count=2, resume=False):
    """Train in so many processes, and give the errors that they stopped with."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    notes = folder / 'errors'
    assert in_processes(launched, cfg, port, count, notes, resume, count=count) == [0] * count
    return [path.read_text() for path in sorted(notes.glob('*'))]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('squeezed')


@pytest.fixture(scope='module')
def options(iter_based):
    return {**iter_based, **OPTIONS}


@pytest.fixture(scope='module')
def shared(config, folder, options):
    """The folder of a training in two processes that share the blocks out."""
    assert not train_in(config(folder / 'shared', **options), folder)
    return folder / 'shared'


def test_the_checkpoints_are_those_of_one_that_is_not(config, folder, options, shared):
    """But for rounding: the norm that clips is summed up in another order."""
    cfg = config(folder / 'unshared', **options, **UNSHARED)
    assert not train_in(cfg, folder)
    for name in ('iter_2.pth', 'iter_4.pth'):
        own, expected = (load(path / name) for path in (shared, folder / 'unshared'))
        for part in PARTS:
            assert_near(own[part], expected[part], part)
        states = own['optimizer']['state']
        assert len(states) == len(expected['optimizer']['state'])
        assert all(state['momentum_buffer'].any() for state in states.values())


def assert_near(found, expected, name):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_near(found[key], value, f'{name}.{key}')
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for i, pair in enumerate(zip(found, expected)):
            assert_near(*pair, f'{name}.{i}')
    elif isinstance(expected, torch.Tensor):
        largest = expected.double().abs().max().clamp_min(1e-6)
        assert (found.double() - expected.double()).abs().max() <= NEAR * largest, name
    else:
        assert found == expected, name


def test_its_checkpoint_goes_on_in_one_process(config, tmp_path, options, shared):
    """Where a process finds all that it needs, whoever stepped it; in either mode."""
    start = load(shared / 'iter_2.pth')
    ends = []
    for mode in ('squeezed', 'online'):
        (tmp_path / mode).mkdir()
        shutil.copy(shared / 'iter_2.pth', tmp_path / mode)
        reparam = {'model.backbone.reparam': dict(type='OREPA', mode=mode)}
        train(config(tmp_path / mode, **{**options, **reparam}), resume=True)
        ends.append(load(tmp_path / mode / 'iter_4.pth'))
    for part in PARTS:
        assert_near(ends[0][part], ends[1][part], part)
    assert list(ends[0]['state_dict']) == list(start['state_dict'])
    assert ends[0]['optimizer']['state'].keys() == start['optimizer']['state'].keys()
    for name, value in ends[0]['state_dict'].items():
        assert not torch.equal(value, start['state_dict'][name]), name


def test_two_processes_go_on_from_one(config, folder, tmp_path, options, shared):
    """And from their own, bit for bit."""
    shutil.copy(shared / 'iter_2.pth', tmp_path)
    assert not train_in(config(tmp_path, **options), folder, resume=True)
    assert differing(load(shared / 'iter_4.pth'), load(tmp_path / 'iter_4.pth')) == []


def shared_and_not(config, folder, hook, **options):
    """The checkpoints of both epochs, where the blocks are shared out and where they are not."""
    found = []
    for name, sharing in (('shared', {}), ('unshared', UNSHARED)):
        cfg = config(folder / name, **{**OPTIONS, **options, 'custom_hooks': [hook]}, **sharing)
        assert not train_in(cfg, folder)
        found.append([load(folder / name / f'epoch_{i}.pth') for i in (1, 2)])
    for own, expected in zip(*found):
        for part in ('state_dict', 'optimizer'):
            assert_near(own[part], expected[part], part)
    return found[0]


def test_unfreezing(config, tmp_path):
    """Stages that are frozen for an epoch, in two processes."""
    freeze = dict(type='FreezeStagesHook', stages=1, end=1)
    first, second = shared_and_not(config, tmp_path, freeze, find_unused_parameters=True)
    assert len(first['optimizer']['state']) < len(second['optimizer']['state'])
    first, second = first['state_dict'], second['state_dict']
    frozen = [name for name in first if name.startswith(('backbone.conv1', 'backbone.layer1'))]
    assert not any(torch.equal(first[name], second[name]) for name in frozen)


#: It looks for an overflow by itself, where nothing has unscaled before.
FUSED = {
    'optim_wrapper.optimizer.fused': True,
    'optim_wrapper.clip_grad': None,
}


@pytest.mark.parametrize('more', [{}, FUSED], ids=['', 'fused'])
def test_an_overflow_of_one_process_is_skipped_by_all(config, tmp_path, more):
    amp = {
        **more,
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.dtype': 'float16',
        'optim_wrapper.loss_scale': dict(init_scale=2.0**8),
    }
    first, second = shared_and_not(config, tmp_path, dict(type='OverflowHook'), **amp)
    assert first['optimizer']['loss_scaler']['scale'] == 2.0**7
    assert second['optimizer']['loss_scaler']['scale'] == 2.0**7


def test_saving_that_begins_late(config, folder, options, tmp_path):
    cfg = config(tmp_path, **options)
    cfg.default_hooks.checkpoint.save_begin = 1
    assert not train_in(cfg, folder)
    for name in ('iter_1.pth', 'iter_3.pth'):
        states = load(tmp_path / name)['optimizer']['state']
        assert all(state['momentum_buffer'].any() for state in states.values())


@pytest.mark.parametrize('more', [dict(begin_iter=2), dict(update_buffers=True)], ids=str)
def test_blocks_stay_together_for_what_reads_all_branches(config, folder, options, tmp_path, more):
    average = dict(type='EMAHook', momentum=0.3, **more)
    cfg = config(tmp_path, **{**options, 'custom_hooks': [average]})
    assert not train_in(cfg, folder)
    found = load(tmp_path / 'iter_4.pth')
    average = found['ema_state_dict'].keys()
    assert average >= {f'module.{name}' for name in found['state_dict']}


def test_fsdp_is_refused(config, tmp_path, options):
    strategy = dict(type='FSDPStrategy', state_dict_cfg='full')
    cfg = config(tmp_path / 'fsdp', runner_type='FlexibleRunner', strategy=strategy, **SHALLOW)
    (message,) = train_in(cfg, tmp_path, count=1)
    assert re.search("FSDP.* does not go with mode='squeezed': .*mode='online'", message)
    assert '\n' not in message
