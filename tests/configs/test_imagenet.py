"""The ImageNet configs: siblings, the released recipe, and a normal ImageNet folder."""

import math

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from PIL import Image
from torch import nn

from mmorepa import OREPAConv2d
from mmorepa.checkpoints.conversion import build_model, count_parameters
from support import ROOT

FOLDER = ROOT / 'configs' / 'imagenet'
DEPTHS = (18, 34, 50, 101)
# Two schedules over the same time: the cosine starts at iteration 0 instead of 5.
SCHEDULE = 2e-5  # absolute, of a rate of 0.1 over 60,000 iterations


def load(name):
    return Config.fromfile(FOLDER / f'{name}_4xb64-120e_in1k.py')


@pytest.mark.parametrize('depth', DEPTHS)
class TestSiblings:
    def test_differ_in_the_backbone_type_alone(self, depth):
        ours = load(f'orepa-resnet{depth}').to_dict()
        plain = load(f'resnet{depth}').to_dict()
        assert ours['model']['backbone'].pop('type') == 'OREPAResNet'
        assert plain['model']['backbone'].pop('type') == 'ResNet'
        assert ours == plain

    def test_build_at_full_size(self, depth):
        ours = build_model(load(f'orepa-resnet{depth}'))
        plain = build_model(load(f'resnet{depth}'))
        assert any(isinstance(module, OREPAConv2d) for module in ours.modules())
        assert not any(isinstance(module, OREPAConv2d) for module in plain.modules())
        assert count_parameters(ours) > count_parameters(plain)
        # Published sizes of the plain networks, in millions.
        published = {18: 11.69, 34: 21.80, 50: 25.56, 101: 44.55}[depth]
        assert count_parameters(plain) / 1e6 == pytest.approx(published, abs=0.005)


def released_rate(i, total, warm_up=5, base=0.1):
    """The rate at iteration i as the released scheduler computes it."""
    if i < warm_up:
        return base * i / warm_up
    return base * (1 + math.cos(math.pi * (i - warm_up) / (total - warm_up))) / 2


def rates(cfg, epoch_length, iterations):
    """The rate at each iteration, by MMEngine's schedulers."""
    init_default_scope('mmpretrain')
    net = nn.Conv2d(1, 1, 1, bias=False)
    wrapper = build_optim_wrapper(net, cfg.optim_wrapper)
    schedulers = [
        PARAM_SCHEDULERS.build(
            scheduler, default_args=dict(optimizer=wrapper.optimizer, epoch_length=epoch_length)
        )
        for scheduler in cfg.param_scheduler
    ]
    assert not any(scheduler.by_epoch for scheduler in schedulers)
    found = []
    wrapper.optimizer.step()
    for _ in range(iterations):
        found.append(wrapper.optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    return np.array(found)


class TestRecipe:
    def test_rate_is_the_released_one(self):
        epoch_length = 500
        total = 120 * epoch_length
        found = rates(load('orepa-resnet18'), epoch_length, total)
        expected = np.array([released_rate(i, total) for i in range(total)])
        assert np.abs(found - expected).max() < SCHEDULE
        np.testing.assert_allclose(found[:6], 0.1 * np.arange(6) / 5, atol=1e-8)

    def test_warm_up_in_epochs(self):
        epoch_length = 100
        total = 120 * epoch_length
        cfg = Config.fromfile(ROOT / 'configs/_base_/schedules/imagenet_bs256_120e_warmup-5e.py')
        found = rates(cfg, epoch_length, total)
        expected = [released_rate(i, total, warm_up=5 * epoch_length) for i in range(total)]
        # MMEngine reaches the full rate one iteration sooner.
        assert np.abs(found - expected).max() < 1.01 * 0.1 / (5 * epoch_length)

    def test_optimizer_and_batch(self):
        cfg = load('orepa-resnet50')
        assert cfg.optim_wrapper.optimizer == dict(
            type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        assert cfg.train_dataloader.batch_size == 64
        assert cfg.auto_scale_lr.base_batch_size == 256
        assert cfg.train_cfg.max_epochs == 120

    def test_groups_of_the_real_network(self):
        cfg = load('orepa-resnet18')
        model = build_model(cfg)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = {
            names[id(group['params'][0])]: (group['lr'], group['weight_decay'])
            for group in wrapper.optimizer.param_groups
        }
        assert groups['backbone.conv1.kernel.0.original.weight'] == (0.1, 1e-4)
        assert groups['backbone.conv1.kernel.0.original.scale'] == (0.1, 1e-4)
        assert groups['backbone.bn1.weight'] == (0.1, 0)
        assert groups['backbone.bn1.bias'] == (0.2, 0)
        assert groups['backbone.layer2.0.downsample.1.bias'] == (0.2, 0)
        assert groups['head.fc.weight'] == (0.1, 1e-4)
        assert groups['head.fc.bias'] == (0.2, 0)

    def test_initial_values_are_pytorchs_own(self):
        """Each parameter stays as constructed when the Runner initialises the model."""
        model = build_model(load('orepa-resnet18'))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """An ImageNet folder as it is unpacked: a thousand folders, one small image in each."""
    root = tmp_path_factory.mktemp('imagenet')
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(1000):
            folder = root / split / f'n{label:08d}'
            folder.mkdir(parents=True)
            pixels = generator.integers(0, 256, (24 + label % 9, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'n{label:08d}_0.JPEG')
    return root


@pytest.mark.parametrize('split', ['train', 'val'])
def test_reads_a_normal_imagenet_folder(split, imagenet):
    cfg = load('orepa-resnet18')
    init_default_scope('mmpretrain')
    dataset_cfg = cfg[f'{split}_dataloader'].dataset
    assert dataset_cfg.data_root == 'data/imagenet'
    dataset = DATASETS.build({**dataset_cfg, 'data_root': str(imagenet)})
    assert len(dataset) == 1000
    for label in (0, 1, 999):
        item = dataset[label]
        assert item['inputs'].shape == (3, 224, 224)
        assert item['data_samples'].gt_label.item() == label


def test_two_iterations_by_the_runner(imagenet, tmp_path):
    """A narrow network, otherwise the config as it is, resolution included."""
    cfg = load('orepa-resnet18')
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 4,
            'model.backbone.stem_channels': 4,
            'model.head.in_channels': 32,
            'train_cfg.max_epochs': 2,
            'work_dir': str(tmp_path),
        }
    )
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[name].dataset.update(data_root=str(imagenet), indices=4)
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.conv1.weight.detach().clone()
    runner.train()
    assert runner.iter == 2
    assert not torch.equal(runner.model.backbone.conv1.weight, before)
