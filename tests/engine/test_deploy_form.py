"""A config of the plain or deploy form takes the checkpoint of that form only."""

import copy
import pickle

import pytest
from mmengine.runner import load_state_dict

from mmorepa.checkpoints import build_model
from mmorepa.checkpoints.conversion import deployed_config
from mmorepa.checkpoints.forms import FORMS
from mmorepa.errors import UserError
from support import make_trained_like


def torchs(model, state_dict):
    model.load_state_dict(state_dict, strict=False)


@pytest.mark.parametrize('load', [load_state_dict, torchs], ids=['mmengine', 'torch'])
@pytest.mark.parametrize('form', ['plain', 'deploy'])
def test_checkpoints_of_other_forms_are_refused(form, load, narrow_config):
    """Loaders that are not strict, as the inferencers' is, would leave out a part in silence."""
    cfg = narrow_config()
    model = build_model(deployed_config(cfg, keep_bn=form == 'plain'))
    for other in FORMS:
        state_dict = FORMS[other](make_trained_like(build_model(cfg))).state_dict()
        for taker in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            if other == form:
                load(taker, state_dict)
            else:
                with pytest.raises(UserError, match='in another form than this config'):
                    load(taker, state_dict)


def test_a_plain_network_with_biases_is_none_of_a_deploy_form(narrow_config):
    """Caffe's networks have both biases and BatchNorms."""
    cfg = narrow_config()
    state_dict = make_trained_like(build_model(deployed_config(cfg, keep_bn=True))).state_dict()
    for name, weight in list(state_dict.items()):
        if weight.dim() == 4:
            state_dict[name.replace('weight', 'bias')] = weight.new_ones(len(weight))
    with pytest.raises(UserError, match='has backbone.bn1.running_mean, so that it is in another'):
        torchs(build_model(deployed_config(cfg, keep_bn=False)), state_dict)


def test_parts_are_taken(narrow_config):
    """As a backbone for a detector, or a classifier for other classes."""
    model = build_model(deployed_config(narrow_config(), keep_bn=True))
    state_dict = {k: v for k, v in model.state_dict().items() if not k.startswith('head.')}
    model.load_state_dict(state_dict, strict=False)
