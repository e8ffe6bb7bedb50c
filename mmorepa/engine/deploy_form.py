"""Building a model in plain or deploy form from a config."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import nn

from ..checkpoints.forms import FORMS, refuse_other_forms


@MODELS.register_module(name='DeployForm')
def build_deploy_form(architecture: str, keep_bn: bool = False, **kwargs) -> nn.Module:
    """Build a model of any library and turn it into the form that ``tools/convert.py`` writes.

    A config of a converted checkpoint is the training config with two fields changed::

        model = dict(type='DeployForm', architecture='ImageClassifier')

    With it ``init_detector``, ``init_model``, ``get_model`` and the libraries' own test commands
    load the checkpoint like any other.

    Args:
        architecture (str): The ``type`` of the training config, such as ``'ImageClassifier'``.
        keep_bn (bool): Build the plain form, with BatchNorms. Defaults to False.
        kwargs: The model's own arguments.

    Returns:
        nn.Module: An instance of ``architecture`` itself, not a wrapper around one. It refuses a
        checkpoint in another form.
    """
    model = MODELS.build(dict(type=architecture, **kwargs))
    model = FORMS['plain' if keep_bn else 'deploy'](model)
    model.register_load_state_dict_pre_hook(refuse_other_forms)
    return model
