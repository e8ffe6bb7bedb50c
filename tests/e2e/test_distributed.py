"""A detector in two processes over gloo: the step of the joint batch, and no unused parameters."""

import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.nn.modules.batchnorm import _BatchNorm

import mmorepa.det  # noqa: F401
from downstream import SIZE, narrow, on_digits
from mmorepa.checkpoints import load_checkpoint
from mmorepa.checkpoints.models import build_model
from mmorepa.datasets.digits import write_digits
from support import ROOT, run

STEP = 1e-3  # relative, of the largest change; float32 sums in another order

CONFIG = ROOT / 'configs' / 'coco' / 'retinanet_orepa-r18_fpn_1x_coco.py'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """Two images, two steps of plain SGD, whose first shows the gradient."""
    folder = tmp_path_factory.mktemp('distributed')
    write_digits(folder, ['coco'], canvases=(2, 1), size=SIZE)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({**narrow(cfg), **on_digits(cfg, folder)})
    cfg.merge_from_dict(
        {
            'train_cfg.max_iters': 2,
            'param_scheduler': [],
            'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=1e-5),
            'model.backbone.norm_cfg.type': 'SyncBN',
            'model.backbone.frozen_stages': -1,
        }
    )
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == 'RandomFlip':
            step.prob = 0.0
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    torch.manual_seed(0)
    model = build_model(cfg)
    # Fixed statistics that fit the images: with others activations grow without bound.
    model.backbone.norm_eval = False
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model.train().backbone(torch.randn(8, 3, SIZE, SIZE))
    torch.save(dict(state_dict=model.state_dict()), folder / 'start.pth')
    cfg.load_from = str(folder / 'start.pth')
    cfg.model.backbone.init_cfg = None
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def test_two_processes_take_the_step_of_the_joint_batch(config, run_forked, tmp_path):
    options = ['--cfg-options', 'train_dataloader.batch_size=1']
    environment = f'PATH={Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    two = [ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', tmp_path / 'two', *options]
    run(config.parent, 'env', environment, 'PORT=29572', *two)
    # RetinaNet divides by the positives of a process, so the joint batch goes image by image.
    options.append('optim_wrapper.accumulative_counts=2')
    one = [ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'one', *options]
    run_forked(config.parent, *one)
    # The second step has run: the distributed wrapper would have refused unused parameters.
    assert (tmp_path / 'two' / 'iter_2.pth').exists()

    start, joint, shared = (
        load_checkpoint(path)['state_dict']
        for path in (
            config.with_name('start.pth'),
            tmp_path / 'one' / 'iter_2.pth',
            tmp_path / 'two' / 'iter_1.pth',
        )
    )
    model = build_model(Config.fromfile(config))
    names = [name for name, _ in model.named_parameters() if name in start]
    steps = {name: joint[name] - start[name] for name in names}
    still = [name for name, step in steps.items() if not step.any()]
    # The scale of the frequency prior starts at zero, so that its weight waits for one step.
    assert all(name.endswith('.prior.weight') for name in still), still
    for name, step in steps.items():
        # Beside float32's rounding of the parameter itself.
        bound = STEP * step.abs().max() + 1e-6 * start[name].abs().max()
        assert (joint[name] - shared[name]).abs().max() <= bound, name
