"""Where importing registers the backbones, and what the prefix ``mmorepa.`` stands for."""

import sys
from collections import OrderedDict
from importlib import import_module

import pytest
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope

from mmorepa import OREPAConv2d
from mmorepa.engine import OREPAOptimWrapperConstructor
from support import ROOT, run

LIBRARIES = {'pretrain': 'mmpretrain', 'det': 'mmdet', 'seg': 'mmseg'}
SMALL = dict(depth=18, base_channels=8, stem_channels=8)

#: Takes the part, its library and the other libraries; nothing of mmorepa is imported before.
BUILD = """
import importlib, sys
from mmengine.registry import MODELS, init_default_scope

part, library, *others = sys.argv[1:]
for other in others:
    sys.modules[other] = None  # what is not installed looks like this
init_default_scope(library)
cfg = dict(type='mmorepa.OREPAResNet', depth=18, base_channels=8, stem_channels=8)
print('built:', type(MODELS.build(cfg)).__module__)
importlib.import_module(f'mmorepa.{part}')
registered = [name for name in MODELS.children[library].module_dict if name.startswith('OREPA')]
print('registered:', *sorted(registered))
"""


@pytest.mark.parametrize(
    'part, names',
    [
        ('pretrain', 'OREPARepVGG OREPAResNeXt OREPAResNet OREPAResNetV1c OREPAResNetV1d'),
        ('det', 'OREPARepVGG OREPAResNeXt OREPAResNet OREPAResNetV1d'),
        ('seg', 'OREPARepVGG OREPAResNeXt OREPAResNet OREPAResNetV1c OREPAResNetV1d'),
    ],
)
def test_each_library_is_enough_and_the_prefix_needs_no_import(part, names):
    library = LIBRARIES[part]
    others = [other for other in LIBRARIES.values() if other != library]
    output = run(ROOT, sys.executable, '-c', BUILD, part, library, *others)
    assert f'built: mmorepa.backbones.{part}_resnet\n' in output
    assert f'registered: {names}\n' in output


@pytest.mark.parametrize('part', LIBRARIES)
@pytest.mark.parametrize('registry_of', LIBRARIES.values())
def test_prefix_follows_the_default_scope(part, registry_of):
    """Whichever library's registry builds it."""
    registry = import_module(f'{registry_of}.registry').MODELS
    with DefaultScope.overwrite_default_scope(LIBRARIES[part]):
        model = registry.build(dict(type='mmorepa.OREPAResNet', **SMALL))
    assert type(model).__module__ == f'mmorepa.backbones.{part}_resnet'


def test_prefix_inside_a_detector():
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = dict(type='mmorepa.OREPAResNet', **SMALL)
        neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5)
        head = dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8)
        model = MODELS.build(dict(type='RetinaNet', backbone=backbone, neck=neck, bbox_head=head))
    assert type(model.backbone).__module__ == 'mmorepa.backbones.det_resnet'


@pytest.fixture(autouse=True)
def _no_default_scope(monkeypatch):
    """None as at the start of a process, whatever other tests have set."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine', None])
def test_prefix_finds_what_belongs_to_no_library(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert MODELS.get('mmorepa.OREPAConv2d') is OREPAConv2d
        name = 'mmorepa.OREPAOptimWrapperConstructor'
        assert OPTIM_WRAPPER_CONSTRUCTORS.get(name) is OREPAOptimWrapperConstructor


@pytest.mark.parametrize('scope', ['mmengine', 'mmorepa', None])
def test_prefix_without_a_library_says_what_to_do(scope):
    with DefaultScope.overwrite_default_scope(scope):
        with pytest.raises(LookupError, match='wanted one of mmpretrain, mmdet, mmseg') as info:
            MODELS.build(dict(type='mmorepa.OREPAResNet'))
    assert '\n' not in str(info.value)


def test_unknown_name_is_the_library_s_error():
    with DefaultScope.overwrite_default_scope('mmdet'):
        with pytest.raises(KeyError, match='mmorepa.Nothing is not in the mmdet::model registry'):
            MODELS.build(dict(type='mmorepa.Nothing'))
