"""A backbone whose first stages are frozen, and trained from the second epoch on."""

import pytest
import torch
from mmengine.hooks import Hook

from faults.common import RELATIVE, STEPS, Scores, load
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import build_runner
from mmorepa.errors import UserError

COUNTS = tuple(f'backbone.layer1.{i}.bn{j}.num_batches' for i in (0, 1) for j in (1, 2))
FROZEN = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1')


def run(config, folder, **options):
    """A training of three epochs: its Runner, the scores it found, its weights by epoch."""
    cfg = config(folder, epochs=3, **{'val_dataloader.batch_size': 2}, **options)
    runner, scores = build_runner(cfg), Scores()
    runner.register_hook(scores)
    runner.train()
    states = [load(folder / f'epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2, 3)]
    return runner, scores, states


def moved(before, after, prefixes):
    return {
        name
        for name, value in after.items()
        if name.startswith(prefixes) and not torch.equal(value, before[name])
    }


def all_parts(state):
    return {name for name in state if name.startswith(FROZEN)}


def assert_evaluates_these_weights(runner, scores, cfg):
    model = build_model(cfg).eval()
    model.load_state_dict(runner.model.state_dict())
    batches = [model.val_step(batch) for batch in runner.val_dataloader]
    expected = torch.stack([sample.pred_score for batch in batches for sample in batch])
    assert (scores.last() - expected).abs().max() < RELATIVE * expected.abs().max()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_unfreezing(config, tmp_path, by_epoch):
    """Parameters and statistics move from then on, and kernels with them."""
    hook = dict(type='FreezeStagesHook', stages=1, end=1 if by_epoch else STEPS, by_epoch=by_epoch)
    runner, scores, states = run(config, tmp_path, custom_hooks=[hook])
    optimizer = load(tmp_path / 'epoch_1.pth')['optimizer']
    # In the first epoch they had no gradient, so that the optimizer has nothing on them.
    held = sum(len(group['params']) for group in optimizer['param_groups'])
    assert len(optimizer['state']) < held
    assert not any(states[0][name].any() for name in states[0] if name.startswith(COUNTS))
    assert moved(states[0], states[1], FROZEN) == all_parts(states[0])
    assert_evaluates_these_weights(runner, scores, runner.cfg)


def test_what_the_config_froze_stays_frozen(config, tmp_path):
    hook = dict(type='FreezeStagesHook', stages=1, end=1)
    norm = {'model.backbone.norm_cfg': dict(type='BN', requires_grad=False)}
    _, _, states = run(config, tmp_path, custom_hooks=[hook], **norm)
    weights = moved(states[0], states[2], ('backbone.',))
    assert 'backbone.layer1.0.bn1.running_mean' in weights
    assert not any('bn' in name and name.endswith(('.weight', '.bias')) for name in weights)


def test_freezing(config, tmp_path):
    """A network of which nothing is frozen before may be frozen later, by any code."""

    class Freeze(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 2:
                runner.model.backbone.frozen_stages = 1
                runner.model.backbone._freeze_stages()

    cfg = config(tmp_path, epochs=3, **{'val_dataloader.batch_size': 2})
    runner, scores = build_runner(cfg), Scores()
    for hook in (scores, Freeze()):
        runner.register_hook(hook)
    runner.train()
    states = [load(tmp_path / f'epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2, 3)]
    assert moved(states[0], states[1], FROZEN) == all_parts(states[0])
    assert moved(states[1], states[2], FROZEN) == set()
    assert moved(states[1], states[2], ('backbone.layer2',))
    assert_evaluates_these_weights(runner, scores, cfg)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'model.backbone.frozen_stages': 0}, 'frozen_stages=0 in the config'),
        (
            {'model.backbone': dict(type='LeNet5', _delete_=True)},
            'LeNet5 has no frozen_stages',
        ),
    ],
)
def test_what_cannot_be_frozen(config, tmp_path, options, message):
    hook = dict(type='FreezeStagesHook', stages=1, end=1)
    with pytest.raises(UserError, match=message):
        build_runner(config(tmp_path, custom_hooks=[hook], **options)).train()
