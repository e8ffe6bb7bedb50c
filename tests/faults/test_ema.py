"""MMEngine's EMA hook: what is evaluated is the average, in a network that holds kernels."""

import pytest
import torch

from faults.common import RELATIVE, SHALLOW, Scores, load
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import build_runner


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB'])
def test_evaluation_is_of_the_average(config, tmp_path, reparam):
    options = {
        'model.backbone.reparam': reparam,
        # Several batches, so that all but the first meet kernels that are held.
        'val_dataloader.batch_size': 2,
        # Statistics of many values that fit soon, or all scores are zero or one.
        'model.backbone.norm_cfg': dict(type='BN', momentum=0.7),
        **SHALLOW,
        'custom_hooks': [dict(type='EMAHook', momentum=0.3)],
    }
    cfg = config(tmp_path, **options)
    runner, scores = build_runner(cfg), Scores()
    runner.register_hook(scores)
    runner.train()
    checkpoint = load(tmp_path / 'epoch_2.pth')

    def scores_of(state_dict):
        model = build_model(cfg).eval()
        model.load_state_dict(state_dict)
        batches = [model.val_step(batch) for batch in runner.val_dataloader]
        return torch.stack([sample.pred_score for batch in batches for sample in batch])

    average = scores_of(checkpoint['state_dict'])
    last = {k.removeprefix('module.'): v for k, v in checkpoint['ema_state_dict'].items()}
    last.pop('steps')
    assert (scores.last() - average).abs().max() < RELATIVE * average.abs().max()
    assert (scores_of(last) - average).abs().max() > 10 * RELATIVE * average.abs().max()
    # After evaluation the network goes on from its own weights.
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, last[name]), name
