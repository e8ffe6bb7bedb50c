"""The classifiers on small sets: siblings that differ in the block alone, and deploy alike."""

import re

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmorepa.checkpoints.conversion import count_parameters
from mmorepa.checkpoints.models import build_model, load_model
from mmorepa.convs import switch_to_deploy
from mmorepa.datasets.fashion import FASHION_CLASSES, SEG_CLASSES
from mmorepa.engine.run import load_config
from support import ROOT

NARROW = {'model.backbone.base_channels': 8}
SQUEEZED = dict(type='OREPA', mode='squeezed')
#: What a sibling's backbone has and the plain one's has not, by the begin of its name.
BLOCKS = {
    'dbb-resnet18': dict(type='OREPAResNet', reparam='DBB'),
    'orepa-resnet18': dict(type='OREPAResNet', reparam=SQUEEZED),
    'repvgg-a0': dict(reparam='RepVGG'),
    'orepa-repvgg-a0': dict(reparam=SQUEEZED),
}
#: What the names of a set's configs end in.
SETS = {'digits': '_1xb64-10e_digits', 'fashion': '-w0.25_1xb128-8e_fashion'}
#: The files of weights, and their largest size in bytes.
FILES, LARGEST = ('.pth', '.safetensors'), 5e6


def load(folder, name, **options):
    path = ROOT / 'configs' / folder / f'{name}{SETS[folder]}.py'
    return load_config(path, 'work', options)


@pytest.mark.parametrize('folder', SETS)
@pytest.mark.parametrize('sibling', BLOCKS)
class TestSiblings:
    def test_differ_in_the_block_alone(self, folder, sibling):
        expected = load(folder, plain(sibling)).to_dict()
        expected['model']['backbone'].update(BLOCKS[sibling])
        assert load(folder, sibling).to_dict() == expected

    def test_deploy_forms_are_one_network(self, folder, sibling):
        models = [build_model(load(folder, name, **NARROW)) for name in (plain(sibling), sibling)]
        assert count_parameters(models[1]) > count_parameters(models[0])
        shapes = [
            {key: value.shape for key, value in switch_to_deploy(model).state_dict().items()}
            for model in models
        ]
        assert shapes[0] == shapes[1]


def plain(sibling):
    """The config without a block of its own."""
    return 'plain-repvgg-a0' if 'repvgg' in sibling else 'resnet18'


@pytest.mark.parametrize('folder', SETS)
def test_networks_are_trained_alike(folder):
    """ResNet-18 and RepVGG-A0 share everything but the model."""
    first, second = (load(folder, name).to_dict() for name in ('resnet18', 'plain-repvgg-a0'))
    for cfg in (first, second):
        cfg.pop('model')
    assert first == second


@pytest.mark.parametrize('folder', SETS)
def test_the_schedule_ends_with_the_training(folder):
    for path in (ROOT / 'configs' / folder).glob('*resnet18*_1xb*.py'):
        cfg = load_config(path, 'work')
        (epochs,) = re.findall(r'-(\d+)e_', path.name)
        cosine = cfg.param_scheduler[-1]
        found = {cfg.train_cfg.max_epochs, cosine.end, cosine.T_max}
        assert found == {int(epochs)}, path
        # What later configs start from is there.
        if 'qat' not in path.name:
            assert int(epochs) % cfg.default_hooks.checkpoint.interval == 0, path


def test_more_epochs_are_the_only_difference_of_equal_time():
    eight = load('fashion', 'resnet18')
    path = ROOT / 'configs/fashion/resnet18-w0.25_1xb128-17e_fashion.py'
    twelve = load_config(path, 'work')
    for cfg in (eight, twelve):
        for key in ('param_scheduler', 'train_cfg'):
            cfg.pop(key)
        cfg.default_hooks.pop('checkpoint')
    assert twelve.to_dict() == eight.to_dict()


class TestFashion:
    """What a study of the classifiers relies on."""

    @pytest.fixture
    def cfg(self):
        return load('fashion', 'resnet18')

    def test_one_channel_becomes_three(self, cfg):
        model = build_model(load('fashion', 'resnet18', **NARROW))
        scans = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
        inputs = model.data_preprocessor(dict(inputs=scans))['inputs']
        assert inputs.shape == (2, 3, 32, 32)
        assert torch.equal(inputs[:, 0], inputs[:, 2])

    @pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
    def test_a_scan_is_in_the_middle_or_moved_and_mirrored(self, cfg, loader):
        scan = np.zeros((28, 28), np.uint8)
        scan[:, :5] = 9
        seen = [self.through(cfg[loader].dataset.pipeline, scan) for _ in range(40)]
        assert {tuple(image.shape) for image in seen} == {(1, 32, 32)}
        if loader == 'test_dataloader':
            middle = np.pad(scan, 2)
            assert all(np.array_equal(image[0], middle) for image in seen)
        else:
            assert len({image.numpy().tobytes() for image in seen}) > 10
            assert 5 < sum(bool(image[0, :, :16].any()) for image in seen) < 35

    @staticmethod
    def through(pipeline, scan):
        import mmpretrain.datasets  # noqa: F401
        from mmcv.transforms import Compose

        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return Compose(pipeline)(dict(img=scan, gt_label=0))['inputs']

    @pytest.mark.parametrize('loader', ['train', 'val', 'test'])
    def test_nothing_is_downloaded_in_training(self, cfg, loader):
        dataset = cfg[f'{loader}_dataloader'].dataset
        assert dataset.download is False
        assert dataset.get('test_mode', False) == (loader != 'train')

    @pytest.mark.parametrize('name', ['detection', 'segmentation'])
    def test_classes_are_those_of_the_canvases(self, name):
        cfg = Config.fromfile(ROOT / f'configs/_base_/datasets/fashion_{name}.py')
        classes = FASHION_CLASSES if name == 'detection' else SEG_CLASSES
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            assert loader.dataset.metainfo.classes == classes
            assert 'fashion' in loader.dataset.data_root
        if name == 'detection':
            assert cfg.test_evaluator.ann_file.startswith(cfg.dataset.data_root)


@pytest.mark.parametrize(
    ('folder', 'forms'), [('digits', ['training']), ('fashion', ['deploy', 'plain'])]
)
def test_weights_that_come_with_the_package_fit_their_config(folder, forms):
    models = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())['Models']
    weights = {model['Config']: ROOT / model['Weights'] for model in models if 'Weights' in model}
    there = [path for path in (ROOT / 'configs' / folder).iterdir() if path.suffix in FILES]
    assert sorted(weights.values()) == sorted(there)
    assert all(path.stat().st_size < LARGEST for path in there)
    loaded = [load_model(load_config(ROOT / config), path) for config, path in weights.items()]
    assert [own.form for own in loaded] == forms
