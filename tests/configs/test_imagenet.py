"""The ImageNet configs: siblings, ablations, the released recipe, and a normal ImageNet folder."""

import copy
import functools
import math
import runpy
import sys

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
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa import OREPAConv2d
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import ReparamConv2d
from mmorepa.convs.orepa.block import BranchSum, DeepLinearStem
from mmorepa.convs.orepa.branches import KXK
from support import ROOT, run

FOLDER = ROOT / 'configs' / 'imagenet'
SUFFIX = '_4xb64-120e_in1k'
SCRIPT = runpy.run_path(str(ROOT / 'docs' / 'parameters.py'))
RESNETS = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet18-w1.5', 'resnet18-w2')
REPVGGS = tuple(f'repvgg-{v}' for v in 'a0 a1 a2 b0 b1 b1g2 b1g4 b2 b3 d2se'.split())
PLAIN = (*RESNETS, 'resnext50-32x4d', *(f'plain-{name}' for name in REPVGGS))
SQUEEZED = dict(type='OREPA', mode='squeezed')
#: Each re-parameterised config: its plain sibling, and what its backbone says instead.
SIBLINGS = {
    **{f'orepa-{name}': (name, dict(type='OREPAResNet', reparam=SQUEEZED)) for name in RESNETS},
    **{f'dbb-{name}': (name, dict(type='OREPAResNet', reparam='DBB')) for name in RESNETS},
    **{
        f'{block.lower()}-resnet18': ('resnet18', dict(type='OREPAResNet', reparam=block))
        for block in ('ACNet', 'MobileOne')
    },
    'expandnet-resnet18': (
        'resnet18',
        dict(type='OREPAResNet', reparam=dict(SQUEEZED, type='ExpandNet')),
    ),
    'orepa-resnext50-32x4d': ('resnext50-32x4d', dict(type='OREPAResNeXt', reparam=SQUEEZED)),
    'dbb-resnext50-32x4d': ('resnext50-32x4d', dict(type='OREPAResNeXt', reparam='DBB')),
    **{name: (f'plain-{name}', dict(reparam='RepVGG')) for name in REPVGGS},
    **{f'orepa-{name}': (f'plain-{name}', dict(reparam=SQUEEZED)) for name in REPVGGS},
}
#: One config of each block and each kind of backbone that is quick to run.
FAMILIES = (
    'orepa-resnet18',
    'dbb-resnet18',
    'acnet-resnet18',
    'expandnet-resnet18',
    'mobileone-resnet18',
    'plain-repvgg-a0',
    'repvgg-a0',
    'orepa-repvgg-a0',
)
ABLATIONS = sorted(
    path.name.removesuffix(f'{SUFFIX}.py') for path in (FOLDER / 'ablations').glob('*.py')
)
# Two schedules over the same time: the cosine starts at iteration 0 instead of 5.
SCHEDULE = 2e-5  # absolute, of a rate of 0.1 over 60,000 iterations


@functools.cache
def read(name):
    with SCRIPT['quick_configs']():
        return Config.fromfile(FOLDER / f'{name}{SUFFIX}.py')


def load(name):
    return copy.deepcopy(read(name))


def narrow(name):
    """The config of a small network; the code it runs is the same."""
    cfg = load(name)
    is_repvgg = cfg.model.backbone.type == 'OREPARepVGG'
    channels = 8 if is_repvgg else 4
    cfg.model.backbone.base_channels = channels
    if not is_repvgg:
        cfg.model.backbone.stem_channels = channels
    cfg.model.head.in_channels = cfg.model.head.in_channels * channels // 64
    return cfg


def build(name):
    """The model at full size on the meta device."""
    return SCRIPT['build'](load(name))


def blocks(model):
    """The blocks of a model by name, those inside others left out."""
    found = {}
    for name, module in model.backbone.named_modules():
        if isinstance(module, ReparamConv2d) and not any(name.startswith(f'{n}.') for n in found):
            found[name] = module
    return found


def test_all_configs_are_here():
    names = {path.name.removesuffix(f'{SUFFIX}.py') for path in FOLDER.glob('*.py')}
    assert names == {*PLAIN, *SIBLINGS}


@pytest.mark.parametrize('name', SIBLINGS)
def test_siblings_differ_in_the_backbone_alone(name):
    plain_name, changes = SIBLINGS[name]
    ours, plain = load(name).to_dict(), load(plain_name).to_dict()
    plain['model']['backbone'].update(changes)
    assert ours == plain


@pytest.mark.parametrize('name', ABLATIONS)
def test_ablations_differ_from_what_they_ablate_in_the_block_alone(name):
    ours = load(f'ablations/{name}').to_dict()
    ablated = load(next(n for n in sorted(SIBLINGS, key=len)[::-1] if name.startswith(f'{n}-')))
    reparam = ours['model']['backbone'].pop('reparam')
    block = ablated.model.backbone.pop('reparam')
    assert reparam['type'] == (block if isinstance(block, str) else block['type'])
    assert ours == ablated.to_dict()


@pytest.mark.parametrize('name', PLAIN)
def test_the_head_fits_the_backbone(name):
    model = build(name)
    assert not blocks(model)
    assert model(torch.empty(1, 3, 64, 64, device='meta'), mode='tensor').shape == (1, 1000)


@pytest.mark.parametrize('factor', [1.5, 2])
def test_wide_networks_are_wider_throughout(factor):
    usual, wide = (
        [m.out_channels for m in build(name).modules() if isinstance(m, nn.Conv2d)]
        for name in ('resnet18', f'resnet18-w{factor:g}')
    )
    assert wide == [factor * channels for channels in usual]


class TestAblations:
    """Each of them is what its name says."""

    @pytest.mark.parametrize('left_out', KXK)
    def test_one_branch_left_out(self, left_out):
        name = left_out.replace('_', '-')
        self.check_branches(f'orepa-resnet18-no-{name}', [b for b in KXK if b != left_out])

    def test_one_branch_left(self):
        self.check_branches('orepa-resnet18-only-original', ['original'])

    def check_branches(self, name, expected):
        model = build(f'ablations/{name}')
        sums = [module for module in model.modules() if isinstance(module, BranchSum)]
        assert len(sums) == 19  # three in the stem, and sixteen
        for module in sums:
            assert [branch for branch, _ in module.named_children()] == expected

    def test_no_scales(self):
        with_scales, without = (
            {name for name, _ in build(config).named_parameters()}
            for config in ('orepa-resnet18', 'ablations/orepa-resnet18-no-scales')
        )
        assert without == {name for name in with_scales if not name.endswith('.scale')}
        assert len(without) < len(with_scales)

    def test_no_deep_stem(self):
        model = build('ablations/orepa-resnet18-no-deep-stem')
        assert type(model.backbone.conv1) is nn.Conv2d
        assert not any(isinstance(module, DeepLinearStem) for module in model.modules())
        assert list(blocks(model)) == [n for n in blocks(build('orepa-resnet18')) if n != 'conv1']

    def test_some_stages(self):
        names = list(blocks(build('ablations/orepa-resnet18-layer34')))
        assert len(names) == 8
        assert all(name.startswith(('layer3.', 'layer4.')) for name in names)

    def test_offline(self):
        found = blocks(build('ablations/orepa-resnet18-offline')).values()
        assert len(found) == 17
        assert {block.mode for block in found} == {'offline'}

    def test_no_1x1(self):
        model = build('ablations/orepa-resnet50-no-1x1')
        usual = blocks(build('orepa-resnet50'))
        found = blocks(model)
        assert list(found) == [name for name, b in usual.items() if b.kernel_size != (1, 1)]
        assert len(found) == 17

    @pytest.mark.parametrize('name', ['dbb-resnet18', 'repvgg-a0'])
    def test_no_branch_norm(self, name):
        model = build(f'ablations/{name}-no-branch-norm')
        found = blocks(model)
        assert list(found) == list(blocks(build(name)))
        for block in found.values():
            assert not any(isinstance(module, _BatchNorm) for module in block.modules())
        plain = build(SIBLINGS[name][0])
        norms = (
            sum(isinstance(module, _BatchNorm) for module in net.modules())
            for net in (model, plain)
        )
        assert next(norms) == next(norms)

    def test_no_shortcuts(self):
        model = build('ablations/orepa-repvgg-a0-no-shortcuts')
        found = blocks(model)
        assert len(found) == 22
        assert all(type(block) is OREPAConv2d for block in found.values())


def test_a_fresh_process_builds_one_of_each_family():
    """With nothing imported but MMEngine: the configs name what they need."""
    code = """
import sys
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
init_default_scope('mmpretrain')
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    print('built', type(MODELS.build(cfg.model).backbone).__name__)
"""
    names = ('orepa-repvgg-a0', 'dbb-resnet18', 'orepa-resnext50-32x4d')
    paths = [FOLDER / f'{name}{SUFFIX}.py' for name in names]
    said = run(ROOT, sys.executable, '-W', 'ignore', '-c', code, *paths)
    for kind in ('OREPARepVGG', 'OREPAResNet', 'OREPAResNeXt'):
        assert f'built {kind}\n' in said


@pytest.mark.parametrize('name', [*PLAIN, *SIBLINGS, *(f'ablations/{n}' for n in ABLATIONS)])
def test_every_config_imports_the_package(name):
    imports = dict(imports=['mmorepa.pretrain'], allow_failed_imports=False)
    assert load(name).custom_imports == imports


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
            names[id(parameter)]: (group['lr'], group['weight_decay'])
            for group in wrapper.optimizer.param_groups
            for parameter in group['params']
        }
        # One a rule: an optimizer goes through its groups one by one.
        assert len(wrapper.optimizer.param_groups) == len(set(groups.values()))
        assert groups['backbone.conv1.kernel.0.original.weight'] == (0.1, 1e-4)
        assert groups['backbone.conv1.kernel.0.original.scale'] == (0.1, 1e-4)
        assert groups['backbone.bn1.weight'] == (0.1, 0)
        assert groups['backbone.bn1.bias'] == (0.2, 0)
        assert groups['backbone.layer2.0.downsample.1.bias'] == (0.2, 0)
        assert groups['head.fc.weight'] == (0.1, 1e-4)
        assert groups['head.fc.bias'] == (0.2, 0)

    @pytest.mark.parametrize('name', [*FAMILIES, 'orepa-resnext50-32x4d', 'repvgg-d2se'])
    def test_rules_hold_inside_of_blocks(self, name):
        """Every bias at twice the rate; no decay on biases and BatchNorms, but on all else."""
        model = build(name)
        wrapper = build_optim_wrapper(model, load(name).optim_wrapper)
        groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
        saved = model.state_dict()
        assert len(groups) == sum(name in saved for name, _ in model.named_parameters())
        for prefix, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                if f'{prefix}.{key}' not in saved:  # the leaf of squeezed training
                    continue
                group = groups[id(parameter)]
                found = group['lr'], group['weight_decay']
                decays = key != 'bias' and not isinstance(module, _BatchNorm)
                expected = 0.2 if key == 'bias' else 0.1, 1e-4 if decays else 0
                assert found == expected, f'{prefix}.{key}'

    @pytest.mark.parametrize('name', FAMILIES)
    def test_initial_values_are_pytorchs_own(self, name):
        """Each parameter stays as constructed when the Runner initialises the model."""
        model = build_model(narrow(name))
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


@pytest.mark.parametrize('name', FAMILIES)
def test_two_iterations_by_the_runner(name, imagenet, tmp_path):
    """A narrow network, otherwise the config as it is, resolution included."""
    cfg = narrow(name)
    cfg.merge_from_dict({'train_cfg.max_epochs': 2, 'work_dir': str(tmp_path)})
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].dataset.update(data_root=str(imagenet), indices=4)
    runner = Runner.from_cfg(cfg)
    assert bool(blocks(runner.model)) == (name in SIBLINGS)
    before = {key: value.detach().clone() for key, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2
    for key, value in runner.model.named_parameters():
        assert not torch.equal(value, before[key]), key
