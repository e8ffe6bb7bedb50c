"""Every downstream config: siblings, and one iteration by the Runner on the digits."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from downstream import SIZE, narrow, on_digits
from mmorepa.checkpoints.conversion import convert
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import ReparamConv2d
from mmorepa.datasets.digits import write_digits
from support import ROOT, make_trained_like

COCO = sorted((ROOT / 'configs' / 'coco').glob('*.py'))
CITYSCAPES = sorted((ROOT / 'configs' / 'cityscapes').glob('*.py'))
DIGITS, FASHION = (
    sorted(
        path
        for pattern in ('retinanet', 'pspnet')
        for path in (ROOT / 'configs' / folder).glob(f'{pattern}*.py')
    )
    for folder in ('digits', 'fashion')
)
#: How far one warm-up step may move a parameter; fresh values are 1 and more away.
MOVED = 0.5
#: In the name of a config, what ``reparam`` of its backbone is.
BLOCKS = {'orepa-': dict(type='OREPA', mode='squeezed'), 'dbb-': 'DBB'}


def stem(path):
    return path.stem


@functools.cache
def read(path):
    return Config.fromfile(path)


def load(path):
    return copy.deepcopy(read(path))


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    write_digits(folder, ['coco', 'cityscapes'], canvases=(2, 1), size=SIZE)
    return folder


def block(path):
    """The key of :data:`BLOCKS` that the name of a config has, or None."""
    return next((prefix for prefix in BLOCKS if f'_{prefix}' in path.name), None)


def sibling_backbones(path):
    """The backbones of a config and of its plain sibling, which differ in nothing else."""
    ours = load(path).to_dict()
    plain = load(path.with_name(path.name.replace(block(path), ''))).to_dict()
    backbones = [config['model'].pop('backbone') for config in (ours, plain)]
    assert ours == plain
    assert [backbone.pop('type') for backbone in backbones] == ['OREPAResNet', 'ResNet']
    return backbones


@pytest.mark.parametrize('path', list(filter(block, COCO + CITYSCAPES)), ids=stem)
def test_siblings_differ_in_the_backbone_alone(path):
    prefix = block(path)
    backbones = sibling_backbones(path)
    assert backbones[0].pop('reparam', None) == BLOCKS[prefix]
    depth = backbones[0]['depth']
    # Both from what everybody has.
    checkpoint = f'torchvision://resnet{depth}'
    assert backbones[0]['init_cfg'] == dict(type='Pretrained', checkpoint=checkpoint)
    assert backbones[0] == backbones[1]
    assert (ROOT / 'configs' / 'imagenet' / f'{prefix}resnet{depth}_4xb64-120e_in1k.py').exists()


@pytest.mark.parametrize('path', list(filter(block, FASHION)), ids=stem)
def test_fashion_siblings_start_from_weights_that_are_there(path):
    backbones = sibling_backbones(path)
    # The stem is too narrow to imitate a plain one.
    assert backbones[0].pop('reparam') == dict(BLOCKS[block(path)], where='layer')
    assert backbones[0] == backbones[1]
    assert (ROOT / backbones[0]['init_cfg']['checkpoint']).exists()


@pytest.mark.parametrize('path', list(filter(block, DIGITS)), ids=stem)
def test_small_siblings_differ_in_the_backbone_alone(path):
    prefix = block(path)
    backbones = sibling_backbones(path)
    assert backbones[0].pop('reparam') == BLOCKS[prefix]
    starts = [Path(backbone['init_cfg'].pop('checkpoint')) for backbone in backbones]
    assert starts[0].parent.name == f'{prefix}{starts[1].parent.name}'
    assert backbones[0] == backbones[1]
    for start in starts:
        (config,) = path.parent.glob(f'{start.parent.name}.py')
        assert start.stem == f'epoch_{load(config).train_cfg.max_epochs}'


#: A config of 80k iterations is one of 40k with another schedule.
LONGER = {path: path.with_name(path.name.replace('80k', '40k')) for path in CITYSCAPES}
LONGER = {path: shorter for path, shorter in LONGER.items() if path != shorter and shorter.exists()}


@pytest.mark.parametrize('path', LONGER, ids=stem)
def test_longer_training_differs_in_the_schedule_alone(path):
    longer, shorter = load(path).to_dict(), load(LONGER[path]).to_dict()
    for config in (longer, shorter):
        del config['train_cfg'], config['param_scheduler'], config['default_hooks']['checkpoint']
    assert longer == shorter
    assert load(path).train_cfg.max_iters == 2 * load(LONGER[path]).train_cfg.max_iters


TRAINED = [path for path in COCO + CITYSCAPES + DIGITS + FASHION if path not in LONGER]


@pytest.mark.parametrize('path', TRAINED, ids=stem)
def test_trains_evaluates_and_converts(path, digits, tmp_path):
    torch.manual_seed(0)
    cfg = load(path)
    cfg.merge_from_dict({**narrow(cfg), **on_digits(cfg, digits), 'work_dir': str(tmp_path)})
    pretrained = make_trained_like(build_model(cfg)).backbone.state_dict()
    checkpoint = tmp_path / 'pretrained.pth'
    torch.save({f'backbone.{key}': value for key, value in pretrained.items()}, checkpoint)
    cfg.model.backbone.init_cfg.update(checkpoint=str(checkpoint), prefix='backbone.')
    cfg.randomness = dict(seed=0)

    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1
    assert any('/' in key or 'mIoU' in key for key in runner.message_hub.log_scalars)
    blocks = sum(isinstance(module, ReparamConv2d) for module in runner.model.modules())
    assert (blocks > 0) == (block(path) is not None)
    # Training began from the checkpoint: one warm-up step moves nothing far.
    moved = runner.model.backbone.state_dict()
    for name, _ in runner.model.backbone.named_parameters():
        if name in moved:  # not the leaf of squeezed training
            assert (moved[name] - pretrained[name]).abs().max() < MOVED, name

    done = convert(cfg, tmp_path / 'iter_1.pth', tmp_path / 'deploy.pth', probe_size=SIZE)
    assert done.blocks == blocks
    assert done.norms > 0
