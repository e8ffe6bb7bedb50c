"""Telling training, plain and deploy form apart, and refusing what fits none."""

import copy

import pytest
import torch
from mmengine.registry import MODELS

import mmorepa.pretrain  # noqa: F401
from mmorepa import squeeze, switch_to_deploy, verify
from mmorepa.checkpoints.forms import form_of, load_any_form
from mmorepa.errors import UserError
from support import make_trained_like

FORMS = dict(training=lambda model: model, plain=squeeze, deploy=switch_to_deploy)


def build(depth=18, **kwargs):
    backbone = dict(type='mmpretrain.OREPAResNet', base_channels=4, stem_channels=4)
    return MODELS.build({**backbone, 'depth': depth, **kwargs})


@pytest.fixture(scope='module')
def trained():
    torch.manual_seed(0)
    return make_trained_like(build()).eval()


@pytest.mark.parametrize('form', FORMS)
def test_each_form_is_found_and_loaded(form, trained):
    converted = FORMS[form](copy.deepcopy(trained))
    model = build()
    assert load_any_form(model, converted.state_dict()) == form
    assert form_of(model) == form
    assert verify(trained, model, torch.randn(1, 3, 32, 32)).within()


def test_plain_network_has_the_plain_form(trained):
    model = build(reparam=None)
    assert load_any_form(model, squeeze(copy.deepcopy(trained)).state_dict()) == 'plain'


def test_model_that_is_built_in_deploy_form(trained):
    state = switch_to_deploy(copy.deepcopy(trained)).state_dict()
    assert load_any_form(build(deploy=True), state) == 'deploy'


@pytest.mark.parametrize('form', FORMS)
def test_a_backbone_alone_is_named_as_such(form, trained):
    model = torch.nn.ModuleDict(dict(backbone=build(), head=torch.nn.Linear(2, 2)))
    state = FORMS[form](copy.deepcopy(trained)).state_dict()
    with pytest.raises(UserError, match='^a.pth has the names of a backbone alone.* --init FILE$'):
        load_any_form(model, {**state, 'fc.weight': torch.zeros(1)}, 'a.pth')


def without_one_key(model):
    state = model.state_dict()
    del state['layer1.0.conv1.kernel.average.scale']
    return state


def with_one_key_more(model):
    return {**model.state_dict(), 'layer9.weight': torch.zeros(1)}


def with_one_shape_changed(model):
    return {**model.state_dict(), 'bn1.bias': torch.zeros(5)}


def of_another_depth(model):
    return build(depth=50).state_dict()


@pytest.mark.parametrize(
    'make, parts',
    [
        (without_one_key, ['1 keys missing, first layer1.0.conv1.kernel.average.scale']),
        (with_one_key_more, ['1 keys unexpected, first layer9.weight']),
        (with_one_shape_changed, ['first bn1.bias with (5,) where (4,) is wanted']),
        (
            of_another_depth,
            [
                'keys missing, first layer1.0.conv1.kernel.average.scale',
                'keys unexpected, first layer1.0.conv1.kernel.pointwise_pointwise.scale',
            ],
        ),
    ],
)
def test_what_fits_no_form_gets_one_line(make, parts, trained):
    with pytest.raises(UserError) as info:
        load_any_form(build(), make(trained), 'some.pth')
    message = str(info.value)
    assert message.startswith('some.pth does not fit')
    assert '\n' not in message
    for part in parts:
        assert part in message
