"""Activation checkpointing in training: weights and statistics are those without, bit for bit."""

import pytest

from faults.common import differing, load
from mmorepa.engine.run import train


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB'])
def test_with_cp(config, tmp_path, reparam):
    """Stochastic depth included: what is computed again draws the same numbers again."""
    checkpoints = []
    for with_cp in (False, True):
        options = {'model.backbone.with_cp': with_cp, 'model.backbone.reparam': reparam}
        folder = tmp_path / str(with_cp)
        train(config(folder, epochs=1, **options), validate=False)
        checkpoints.append(load(folder / 'epoch_1.pth'))
    assert differing(*checkpoints) == []
