"""Sizes of models: the page, the metafiles, and what conversion really leaves."""

import copy
import runpy

import pytest
import torch
import yaml
from mmengine.config import Config

from mmorepa import squeeze, switch_to_deploy
from mmorepa.checkpoints.conversion import count_parameters
from mmorepa.checkpoints.models import build_model
from support import ROOT

SCRIPT = runpy.run_path(str(ROOT / 'docs' / 'parameters.py'))
#: A RepVGG of every kind of layer: grouped, with SE, with and without identity.
SMALL_REPVGG = dict(
    num_blocks=[2, 1, 1, 1],
    width_factor=[1, 1, 1, 1],
    group_layer_map={2: 2},
    se_cfg=dict(ratio=16, divisor=1),
)
#: Parameters as mmpretrain gives them: of ResNets in training, of RepVGGs in deploy form.
PUBLISHED_RESNETS = {
    'resnet18': 11.69e6,
    'resnet34': 21.80e6,
    'resnet50': 25.56e6,
    'resnet101': 44.55e6,
    'resnext50-32x4d': 25.03e6,
}
PUBLISHED_REPVGGS = {
    'repvgg-a0': 8309384,
    'repvgg-a1': 12789864,
    'repvgg-a2': 25499944,
    'repvgg-b1': 51829480,
    'repvgg-b1g2': 41360104,
    'repvgg-b1g4': 36125416,
    'repvgg-b2': 80315112,
    'repvgg-b3': 110960872,
    'repvgg-d2se': 120387572,
}
ROUNDING = 0.005e6


@pytest.fixture(scope='module')
def sizes():
    """The size of every config's model, counted now."""
    return SCRIPT['all_sizes']()


def test_the_page_is_what_the_script_writes(sizes):
    page = (ROOT / 'docs' / 'parameters.md').read_text()
    assert page == SCRIPT['page'](sizes), 'run python docs/parameters.py'


def test_every_config_is_on_the_page(sizes):
    configs = ROOT / 'configs'
    there = {path for path in configs.rglob('*.py') if '_base_' not in path.parts}
    assert set(sizes) == there


@pytest.mark.parametrize('name', ['imagenet', 'imagenet/ablations', 'fashion'])
def test_the_metafile_lists_every_config_with_its_size(name, sizes):
    file = ROOT / 'configs' / name / 'metafile.yml'
    listed = {
        ROOT / model['Config']: (
            model['Metadata']['Training Parameters'],
            model['Metadata']['Parameters'],
        )
        for model in yaml.safe_load(file.read_text())['Models']
    }
    counted = {p: (s.training, s.deploy) for p, s in sizes.items() if p.parent == file.parent}
    assert listed == counted


def test_the_metafile_of_the_digits_has_the_size_of_its_weights(sizes):
    (model,) = yaml.safe_load((ROOT / 'configs/digits/metafile.yml').read_text())['Models']
    size = sizes[ROOT / model['Config']]
    stated = model['Metadata']
    assert (stated['Training Parameters'], stated['Parameters']) == (size.training, size.deploy)


@pytest.mark.parametrize('name', SCRIPT['SIDES'])
def test_the_metafile_has_the_multiply_adds_of_classifiers(name):
    """They are OpenMMLab's FLOPs, of the deploy form; those of detectors depend on the image."""
    models = yaml.safe_load((ROOT / 'configs' / name / 'metafile.yml').read_text())['Models']
    known, counted = {}, {}
    with SCRIPT['quick_configs']():
        for model in models:
            cfg = Config.fromfile(ROOT / model['Config'])
            if cfg.default_scope == 'mmpretrain':
                side = SCRIPT['SIDES'][name]
                counted[model['Name']] = SCRIPT['multiply_adds'](cfg, side, known)
    assert counted == {
        m['Name']: m['Metadata'].get('FLOPs') for m in models if m['Name'] in counted
    }
    assert all('FLOPs' not in m['Metadata'] for m in models if m['Name'] not in counted)


@pytest.mark.parametrize('network', PUBLISHED_RESNETS)
@pytest.mark.parametrize('prefix', ['', 'dbb-', 'orepa-'])
def test_plain_resnets_have_the_published_size(prefix, network, sizes):
    size = sizes[ROOT / 'configs' / 'imagenet' / f'{prefix}{network}_4xb64-120e_in1k.py']
    assert size.plain == pytest.approx(PUBLISHED_RESNETS[network], abs=ROUNDING)


@pytest.mark.parametrize('network', PUBLISHED_REPVGGS)
@pytest.mark.parametrize('prefix', ['plain-', '', 'orepa-'])
def test_deployed_repvggs_have_the_published_size(prefix, network, sizes):
    size = sizes[ROOT / 'configs' / 'imagenet' / f'{prefix}{network}_4xb64-120e_in1k.py']
    assert size.deploy == PUBLISHED_REPVGGS[network]


def test_blocks_make_a_network_larger_in_training_alone(sizes):
    for path, size in sizes.items():
        if '_qat_' in path.name:  # its BatchNorms are folded while they train
            assert size.training == size.plain == size.deploy, path
        elif size.blocks and not path.name.startswith('tweaked-'):
            assert size.training > size.plain > size.deploy, path
        else:
            assert size.training == size.plain > size.deploy, path


@pytest.mark.parametrize(
    ('config', 'options'),
    [
        ('orepa-resnet50', dict(base_channels=8, stem_channels=8)),
        ('dbb-resnet18', dict(base_channels=8, stem_channels=8)),
        ('expandnet-resnet18', dict(base_channels=4, stem_channels=4)),
        ('ablations/dbb-resnet18-no-branch-norm', dict(base_channels=4, stem_channels=4)),
        ('orepa-resnext50-32x4d', dict(base_channels=8, stem_channels=8, groups=2)),
        ('repvgg-a0', dict(arch=SMALL_REPVGG, base_channels=8)),
        ('orepa-repvgg-a0', dict(arch=SMALL_REPVGG, base_channels=8)),
    ],
)
def test_the_count_is_that_of_a_real_conversion(config, options):
    """On the CPU, where kernels are generated, at a small width."""
    torch.manual_seed(0)
    with SCRIPT['quick_configs']():
        cfg = Config.fromfile(ROOT / 'configs' / 'imagenet' / f'{config}_4xb64-120e_in1k.py')
    cfg.model.backbone.update(options)
    size = SCRIPT['size'](cfg, {})
    model = build_model(cfg)
    assert size.training == count_parameters(model)
    assert size.plain == count_parameters(squeeze(copy.deepcopy(model)))
    assert size.deploy == count_parameters(switch_to_deploy(model))
