"""``compile=True`` in the Runner's config: the same training, whatever the optimizer's groups."""

import torch
from torch._dynamo.utils import counters

from faults.common import SHALLOW, load
from mmorepa.engine.run import train

STEP = 1e-3  # relative, of all changes together; float32 sums in another order

#: The config's own constructor puts each parameter into a group; the rate changes in each step.
OPTIONS = {
    **SHALLOW,
    'train_dataloader.batch_size': 6,
    'train_cfg.max_epochs': 2,
    'model.backbone.drop_path_rate': 0.0,
}


def test_compiled_training_is_the_eager_one(config, tmp_path):
    torch.compiler.reset()
    counters.clear()
    for name, options in (('eager', {}), ('compiled', dict(compile=dict(backend='aot_eager')))):
        train(config(tmp_path / name, **OPTIONS, **options), validate=False)
    assert counters['stats']['unique_graphs'] > 0
    start, eager, compiled = (
        load(tmp_path / path)['state_dict']
        for path in ('eager/epoch_1.pth', 'eager/epoch_2.pth', 'compiled/epoch_2.pth')
    )
    assert list(eager) == list(compiled)
    names = [name for name, value in eager.items() if value.is_floating_point()]
    expected, found = (
        torch.cat([(state[name] - start[name]).flatten() for name in names])
        for state in (eager, compiled)
    )
    assert expected.norm() > 0
    assert (found - expected).norm() < STEP * expected.norm()
