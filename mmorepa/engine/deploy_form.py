"""A model in its squeezed or deploy form, as a config can ask for it."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import nn

from ..convs import squeeze, switch_to_deploy


@MODELS.register_module(name='DeployForm')
def build_deploy_form(architecture: str, keep_bn: bool = False, **kwargs) -> nn.Module:
    """Build a model of any library and turn it into the form that ``tools/convert.py`` writes.

    A config of a converted checkpoint is the training config with two fields changed::

        model = dict(type='DeployForm', architecture='ImageClassifier')

    so that ``init_detector``, ``init_model``, ``get_model`` and the libraries' own test commands
    load the checkpoint as they load any other.

    Args:
        architecture (str): What ``type`` was: ``'ImageClassifier'``, ``'RetinaNet'``, ...
        keep_bn (bool): Squeeze only, and keep the BatchNorms. Defaults to False.
        kwargs: The model's own.

    Returns:
        nn.Module: An instance of ``architecture``, not of a wrapper.
    """
    model = MODELS.build(dict(type=architecture, **kwargs))
    return squeeze(model) if keep_bn else switch_to_deploy(model)
