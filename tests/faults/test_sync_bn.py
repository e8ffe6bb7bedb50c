"""SyncBN: what becomes of it on one process, on the CPU, and in deploy form."""

import copy

import pytest
import torch
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from faults.common import in_processes, load
from mmorepa import squeeze, switch_to_deploy
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import train
from support import make_trained_like

RELATIVE = 1e-4  # outputs of two forms, float32


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB'])
@pytest.mark.parametrize('convert', [squeeze, switch_to_deploy])
def test_conversion(config, tmp_path, reparam, convert):
    """As it is after training on several GPUs; in eval mode it runs anywhere."""
    backbone = {'model.backbone.norm_cfg': dict(type='SyncBN'), 'model.backbone.reparam': reparam}
    torch.manual_seed(0)
    model = make_trained_like(build_model(config(tmp_path, **backbone))).backbone.eval()
    assert all(
        isinstance(m, nn.SyncBatchNorm) for m in model.modules() if isinstance(m, _BatchNorm)
    )
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)[-1]
        found = convert(copy.deepcopy(model))(x)[-1]
    assert (found - expected).abs().max() < RELATIVE * expected.abs().max()


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB'])
def test_blocks_are_reached_by_mmengine(config, tmp_path, reparam):
    """``sync_bn='torch'`` in a config turns all norms, those in the blocks too; and back."""
    backbone = {'model.backbone.reparam': reparam, 'model.backbone.drop_path_rate': 0.0}
    model = build_model(config(tmp_path, **backbone)).backbone
    before = {name: type(m) for name, m in model.named_modules()}
    norms = [name for name, kind in before.items() if kind is nn.BatchNorm2d]
    converted = convert_sync_batchnorm(copy.deepcopy(model), 'torch')
    assert all(type(converted.get_submodule(name)) is nn.SyncBatchNorm for name in norms)
    reverted = revert_sync_batchnorm(converted)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(reverted.train()(x)[-1], model.train()(x)[-1])


def test_training_in_one_process(config, tmp_path):
    """MMEngine turns it into BN there, and what is trained is the same."""
    for kind in ('BN', 'SyncBN'):
        options = {'model.backbone.norm_cfg': dict(type=kind), 'train_cfg.max_epochs': 1}
        train(config(tmp_path / kind, **options), validate=False)
    first, second = (load(tmp_path / k / 'epoch_1.pth')['state_dict'] for k in ('BN', 'SyncBN'))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def run_on_the_cpu(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=1
    )
    with pytest.raises(ValueError, match='expected input tensor to be on'):
        nn.SyncBatchNorm(4).train()(torch.randn(2, 4, 8, 8))


def test_torch_has_none_for_the_cpu(tmp_path):
    """Why two processes on a CPU train with BN."""
    assert in_processes(run_on_the_cpu, tmp_path) == [0]
