"""Quantization-aware training by MMEngine's Runner: start, ranges, freezing, resuming."""

import json

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.quantization.conftest import REPARAM
from faults.common import differing, load
from mmorepa.checkpoints import load_checkpoint, load_model
from mmorepa.checkpoints.conversion import convert
from mmorepa.deploy.quantization import QATHook, Settings, quantize
from mmorepa.engine.run import build_runner, train
from mmorepa.engine.seeding import seed_samples
from mmorepa.errors import UserError
from support import ROOT

QAT = ROOT / 'configs' / 'digits' / 'orepa-resnet18_qat_1xb64-4e_digits.py'
MOST_LOST = 5.0  # points, of this network of 8 channels and 96 images


@pytest.fixture(scope='session')
def qat_config(config):
    """Gives the config of quantization-aware training, on a few images."""

    def load(work_dir, **options):
        return config(
            QAT,
            work_dir,
            **{
                'train_cfg.max_epochs': 2,
                'train_cfg.val_interval': 1,
                'default_hooks.checkpoint': dict(interval=1, max_keep_ckpts=-1),
                'train_dataloader.dataset.indices': list(range(0, 1438, 6)),
                'val_dataloader.dataset.indices': list(range(0, 359, 4)),
                'test_dataloader.dataset.indices': list(range(0, 359, 4)),
                'optim_wrapper.optimizer.lr': 0.001,
                **options,
            },
        )

    return load


class Watch:
    """Notes ranges and statistics around validation and at the end of each epoch."""

    def __init__(self, runner):
        self.seen = []
        hook = next(hook for hook in runner.hooks if isinstance(hook, QATHook))
        for event in ('before_val', 'after_val'):
            setattr(hook, event, self.around(runner, event, getattr(hook, event)))

    def around(self, runner, event, method):
        def noted(runner):
            self.seen.append((event, ranges(runner.model), statistics(runner.model)))
            method(runner)

        return noted


def ranges(model):
    return {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if name.endswith(('min_val', 'max_val')) and 'weight_fake_quant' not in name
    }


def statistics(model):
    return {
        name: module.running_mean.clone()
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    }


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope='session')
def trained(qat_config, plain, tmp_path_factory):
    """Two epochs, frozen from the second on, and what was seen on the way."""
    folder = tmp_path_factory.mktemp('qat')
    hooks = [dict(type='QATHook', freeze_at=0.5), dict(type='mmorepa.IterSeedHook')]
    cfg = qat_config(folder, load_from=str(plain), custom_hooks=hooks)
    seed_samples(cfg)
    runner = build_runner(cfg)
    watch = Watch(runner)
    runner.train()
    return folder, watch.seen, runner


def test_ranges_and_statistics_move_until_they_are_frozen(trained, plain):
    _, seen, _ = trained
    (_, at_1, stats_1), (_, after_val, _), (_, at_2, stats_2), _ = seen
    assert same(at_1, after_val)  # validation images move nothing
    assert same(at_1, at_2) and same(stats_1, stats_2)
    begin = load_checkpoint(plain)['state_dict']
    assert not torch.equal(begin['backbone.bn1.running_mean'], stats_1['backbone.conv1.bn'])


def test_weights_are_still_trained_when_ranges_are_frozen(trained):
    folder, _, _ = trained
    first, second = (load_checkpoint(folder / f'epoch_{i}.pth')['state_dict'] for i in (1, 2))
    assert not torch.equal(first['backbone.conv1.weight'], second['backbone.conv1.weight'])


def test_int8_by_both_backends(trained, qat_config, tmp_path):
    folder, _, _ = trained
    for name, settings in (('a.pt', Settings('torch')), ('b.onnx', Settings())):
        cfg = qat_config(tmp_path)
        if settings.backend == 'torch':
            cfg.train_dataloader = None  # training found the ranges
        done = quantize(cfg, folder / 'epoch_2.pth', tmp_path / name, settings, 64, True)
        before, after = (metrics['accuracy/top1'] for metrics in done.metrics)
        assert before > 30.0  # chance is 10
        assert after > before - MOST_LOST
        assert done.trained == (settings.backend == 'torch')
        assert done.calibration == (0 if done.trained else 64)
        recorded = json.loads((tmp_path / f'{name}.json').read_text())['settings']['method']
        assert recorded == (None if done.trained else 'minmax')


@pytest.mark.parametrize('options', [dict(per_channel=False), dict(method='minmax')])
def test_what_training_chose_is_not_chosen_again(options, qat_config, tmp_path):
    with pytest.raises(UserError, match='training chose the scales and ranges') as raised:
        quantize(qat_config(tmp_path), 'a.pth', tmp_path / 'a.pt', Settings('torch', **options))
    assert '\n' not in str(raised.value)


def test_resuming_is_bit_for_bit(trained, qat_config, tmp_path):
    """Frozen from the first step after it on, as without the stop."""
    folder, _, _ = trained
    cfg = qat_config(tmp_path, custom_hooks=[dict(type='QATHook', freeze_at=0.5)])
    train(cfg, resume=folder / 'epoch_1.pth')
    assert differing(load(folder / 'epoch_2.pth'), load(tmp_path / 'epoch_2.pth')) == []


def test_resuming_with_an_average_and_accumulation(qat_config, plain, tmp_path):
    options = {
        'custom_hooks': [dict(type='QATHook'), dict(type='EMAHook')],
        'optim_wrapper.accumulative_counts': 3,
    }
    train(qat_config(tmp_path / 'whole', load_from=str(plain), **options))
    train(qat_config(tmp_path / 'two', **options), resume=tmp_path / 'whole' / 'epoch_1.pth')
    whole, two = (load(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'two'))
    assert differing(whole, two) == []


def test_starts_from_a_training_checkpoint_where_the_config_builds_blocks(
    qat_config, checkpoint, plain, tmp_path
):
    options = {
        'train_cfg.max_epochs': 1,
        'train_dataloader.dataset.indices': list(range(0, 1438, 24)),
    }
    states = []
    for name, path in (('blocks', checkpoint), ('plain', plain)):
        cfg = qat_config(tmp_path / name, load_from=str(path), **options)
        cfg.model.backbone.reparam = REPARAM if name == 'blocks' else None
        train(cfg, validate=False)
        states.append(load_checkpoint(tmp_path / name / 'epoch_1.pth')['state_dict'])
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        first, second = (state[key].double() for state in states)
        assert torch.allclose(first, second, rtol=1e-2, atol=1e-3), key


def test_checkpoint_without_a_fit_gets_one_line(qat_config, config, checkpoint, tmp_path):
    deploy = convert(config(), checkpoint, tmp_path / 'deploy.pth', probe_size=32).out
    for path, message in [
        (deploy, 'load_from is in deploy form, .* wanted the plain form'),
        (checkpoint, 'does not fit .* wanted the plain form, as tools/convert.py --keep-bn'),
        (None, 'starts from a trained network: give its plain checkpoint'),
    ]:
        cfg = qat_config(tmp_path / 'work', load_from=path and str(path))
        with pytest.raises(UserError, match=message) as raised:
            train(cfg, validate=False)
        assert '\n' not in str(raised.value)


def test_what_was_not_trained_so_does_not_load(qat_config, checkpoint, tmp_path):
    with pytest.raises(UserError, match='does not fit the model of this config'):
        load_model(qat_config(tmp_path), checkpoint)


@pytest.mark.parametrize('freeze_at', [-0.1, 1.5])
def test_refuses_shares_that_are_none(freeze_at):
    with pytest.raises(UserError, match='wanted a number from 0 to 1'):
        QATHook(freeze_at)
