"""``load_from`` through the real Runner: all of it arrives, or it is an error."""

import re

import pytest
import torch
from mmdet.models import SemiBaseDetector
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from engine.small_training import BACKBONE, make_runner
from mmorepa import squeeze, switch_to_deploy
from mmorepa.checkpoints.files import mmengine_loads_weights_only
from mmorepa.errors import UserError
from support import make_trained_like

WIDE = dict(stem_channels=24)  # enough for the stem to have any kernel
FLOAT32 = 1e-5


def classifier(reparam='OREPA', classes=3, **options):
    torch.manual_seed(0)
    backbone = {**BACKBONE, **WIDE, 'reparam': reparam, **options}
    model = dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=classes, in_channels=32),
    )
    return make_trained_like(MODELS.build(model))


def started(tmp_path, state_dict, partial=False, **kwargs):
    """A runner that has loaded a state dict, as it would before training."""
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=state_dict, meta={}), path)
    hook = dict(type='LoadFromHook', partial=partial)
    runner = make_runner(
        tmp_path / 'work', hooks=[hook], backbone=WIDE, load_from=str(path), **kwargs
    )
    runner.load_or_resume()
    return runner


def outputs(model):
    model.eval()
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(image, mode='tensor')


def test_the_models_own_weights(tmp_path):
    trained = classifier()
    runner = started(tmp_path, trained.state_dict())
    assert torch.equal(outputs(runner.model), outputs(trained))


def test_a_plain_models_weights(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger, 'info', lambda logger, text: said.append(text))
    plain = classifier(None)
    runner = started(tmp_path, plain.state_dict())
    torch.testing.assert_close(
        outputs(runner.model), outputs(plain), rtol=FLOAT32, atol=10 * FLOAT32
    )
    expected = r'a plain network: \d+ blocks imitate its convolutions, outputs are (\S+) apart'
    assert float(re.search(expected, ' '.join(said))[1]) < FLOAT32


def test_a_squeezed_models_weights(tmp_path):
    trained = classifier()
    expected = outputs(trained)
    runner = started(tmp_path, squeeze(trained).state_dict())
    torch.testing.assert_close(outputs(runner.model), expected, rtol=1e-4, atol=1e-4)


def backbone_alone(model):
    return {
        key.removeprefix('backbone.'): value for key, value in model.backbone.state_dict().items()
    }


@pytest.mark.parametrize(
    'state_dict, message',
    [
        (lambda: classifier(classes=5).state_dict(), 'shapes differ, first head.fc.weight'),
        (lambda: backbone_alone(classifier(None)), '--init'),
        (lambda: dict(weight=torch.zeros(2)), 'keys missing'),
        (lambda: switch_to_deploy(classifier()).state_dict(), 'a deploy form'),
    ],
    ids=['other classes', 'a backbone alone', 'something else', 'deploy form'],
)
def test_what_does_not_fit_is_an_error(state_dict, message, tmp_path):
    with pytest.raises(UserError, match=message) as info:
        started(tmp_path, state_dict())
    assert '\n' not in str(info.value)


def test_a_part_where_it_is_asked_for(tmp_path):
    other = classifier(None, classes=5)
    runner = started(tmp_path, other.state_dict(), partial=True)
    image = torch.randn(2, 3, 32, 32)
    other.eval()
    runner.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            runner.model.backbone(image)[0], other.backbone(image)[0], rtol=1e-4, atol=1e-4
        )


def transformer(size, classes=3):
    torch.manual_seed(size)
    arch = dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=size, patch_size=8),
        head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=classes, in_channels=8),
    )


@pytest.mark.parametrize('classes, partial', [(3, False), (3, True), (5, True)])
def test_a_model_that_resizes_its_weights(classes, partial, tmp_path):
    """Position embeddings of other images, among what fits and where all does."""
    other = MODELS.build(transformer(48, classes))
    nn.init.ones_(other.backbone.pos_embed)
    runner = started(tmp_path, other.state_dict(), partial, model=transformer(32))
    found = runner.model.backbone.pos_embed
    torch.testing.assert_close(found, torch.ones(1, 17, 8))


@pytest.mark.parametrize('change', ['a tensor less', 'other classes', 'int8'])
def test_a_model_that_resizes_its_weights_still_wants_all(change, tmp_path):
    state_dict = MODELS.build(transformer(48, 5 if change == 'other classes' else 3)).state_dict()
    if change == 'a tensor less':
        del state_dict['head.layers.head.bias']
    if change == 'int8':
        state_dict['head.layers.head.bias'] = torch.ones(3, dtype=torch.int8)
    with pytest.raises(UserError, match='does not fit the model: '):
        started(tmp_path, state_dict, model=transformer(32))


@pytest.mark.parametrize('reparam', ['OREPA', None])
def test_a_model_that_renames_its_weights(reparam, tmp_path):
    """Student and teacher both start from a plain detector."""

    class Pair(SemiBaseDetector):
        def __init__(self):
            BaseModel.__init__(self)
            self.student, self.teacher = classifier(reparam), classifier(reparam)

    plain = classifier(None)
    runner = started(tmp_path, plain.state_dict(), model=Pair())
    for model in (runner.model.student, runner.model.teacher):
        torch.testing.assert_close(outputs(model), outputs(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('reparam', ['OREPA', None])
def test_a_block_is_loaded_whole_or_not_at_all(reparam, tmp_path):
    """The first one takes images of other channels; some of its parameters would fit."""
    other = classifier(reparam, in_channels=4)
    runner = started(tmp_path, other.state_dict(), partial=True)
    found = runner.model.backbone
    assert not torch.equal(found.conv1.squeeze()[:, :3], other.backbone.conv1.weight[:, :3])
    torch.testing.assert_close(
        found.layer1[0].conv1.squeeze(), other.backbone.layer1[0].conv1.weight
    )


@pytest.mark.parametrize('wrong', ['nothing', 'deploy form'])
def test_no_part_is_never_enough(wrong, tmp_path):
    if wrong == 'nothing':
        state_dict = dict(weight=torch.zeros(2))
    else:
        state_dict = switch_to_deploy(classifier()).state_dict()
    with pytest.raises(UserError):
        started(tmp_path, state_dict, partial=True)


def test_resuming_is_left_alone(tmp_path):
    """The checkpoint of the same training fits, and MMEngine reads it as ever."""
    hooks = [dict(type='LoadFromHook')]
    make_runner(tmp_path, hooks=hooks).train()
    runner = make_runner(tmp_path, hooks=hooks, resume=True)
    with mmengine_loads_weights_only():
        runner.load_or_resume()
    assert runner.epoch == 2


def test_resuming_another_model_is_an_error(tmp_path):
    """MMEngine would leave out what does not fit, and train the rest from random values."""
    hooks = [dict(type='LoadFromHook')]
    make_runner(tmp_path, hooks=hooks).train()
    wider = dict(base_channels=8)
    runner = make_runner(tmp_path, hooks=hooks, resume=True, backbone=wider)
    with mmengine_loads_weights_only(), pytest.raises(UserError, match='is of another model: '):
        runner.load_or_resume()
