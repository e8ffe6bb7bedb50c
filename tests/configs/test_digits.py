"""The classifiers on the digits: siblings that differ in the block alone, and deploy alike."""

import pytest

from mmorepa.checkpoints.conversion import count_parameters
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import switch_to_deploy
from mmorepa.engine.run import load_config
from support import ROOT

NARROW = {'model.backbone.base_channels': 8}
SQUEEZED = dict(type='OREPA', mode='squeezed')
#: What a sibling's backbone has and the plain one's has not.
BLOCKS = [
    ('resnet18', 'dbb-resnet18', dict(type='OREPAResNet', reparam='DBB')),
    ('resnet18', 'orepa-resnet18', dict(type='OREPAResNet', reparam=SQUEEZED)),
    ('plain-repvgg-a0', 'repvgg-a0', dict(reparam='RepVGG')),
    ('plain-repvgg-a0', 'orepa-repvgg-a0', dict(reparam=SQUEEZED)),
]


def load(name, **options):
    return load_config(ROOT / f'configs/digits/{name}_1xb64-10e_digits.py', 'work', options)


@pytest.mark.parametrize('plain, sibling, block', BLOCKS)
class TestSiblings:
    def test_differ_in_the_block_alone(self, plain, sibling, block):
        expected = load(plain).to_dict()
        expected['model']['backbone'].update(block)
        assert load(sibling).to_dict() == expected

    def test_deploy_forms_are_one_network(self, plain, sibling, block):
        models = [build_model(load(name, **NARROW)) for name in (plain, sibling)]
        assert count_parameters(models[1]) > count_parameters(models[0])
        shapes = [
            {key: value.shape for key, value in switch_to_deploy(model).state_dict().items()}
            for model in models
        ]
        assert shapes[0] == shapes[1]


def test_networks_are_trained_alike():
    """ResNet-18 and RepVGG-A0 share everything but the model."""
    first, second = (load(name).to_dict() for name in ('resnet18', 'plain-repvgg-a0'))
    for cfg in (first, second):
        cfg.pop('model')
    assert first == second
