"""Quantization-aware training: the plain form with fake quantization in its backbone.

Weights and activations are rounded to 8 bits in the forward pass and keep their gradients (Jacob et
al., CVPR 2018). BatchNorms are there and are folded into the rounded weights on the fly, which is
why training starts from the plain form and not from the deploy form.
"""

from __future__ import annotations

import copy
import os

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import fx, nn
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
from torch.nn.modules.batchnorm import _BatchNorm

from ...checkpoints import build_model, load_any_form, load_model
from ...config_types import is_of_type
from ...convs import squeeze, switch_to_deploy
from ...convs.convert.squeezing import foldable_norms
from ...convs.kernels import fold_batch_norm
from ...engine.quiet import quiet_torch
from ...errors import UserError
from .backbone_graph import traced


@MODELS.register_module(name='QATForm')
def build_qat_form(architecture: str, **kwargs) -> nn.Module:
    """Build a model of any library, in plain form, with fake quantization in its backbone.

    A config takes it as it takes ``DeployForm``, and wants :class:`QATHook` beside it::

        model = dict(type='QATForm', architecture='ImageClassifier', backbone=dict(reparam=None))
        custom_hooks = [dict(type='QATHook')]
        load_from = 'plain.pth'

    ``reparam=None`` builds the plain network at once; without it the blocks are built and squeezed.
    A backbone with ``norm_eval=True``, as detectors have, keeps the statistics of its BatchNorms.

    Args:
        architecture (str): The ``type`` of the float config: ``'ImageClassifier'``,
            ``'RetinaNet'``, ...
        kwargs: The model's own arguments.

    Returns:
        nn.Module: An instance of ``architecture`` whose backbone is a ``torch.fx`` graph.

    Raises:
        UserError: If the backbone has no BatchNorm, has one that follows no convolution, or cannot
            be traced.
    """
    return with_fake_quantization(MODELS.build(dict(type=architecture, **kwargs)))


def with_fake_quantization(model: nn.Module) -> nn.Module:
    """Squeeze the backbone of a model and put fake quantization into it, in place.

    Args:
        model (nn.Module): A model in training or plain form.

    Returns:
        nn.Module: The model.

    Raises:
        UserError: As :func:`build_qat_form`.
    """
    backbone = revert_sync_batchnorm(squeeze(model.backbone))
    if not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        raise UserError(
            f'{type(backbone).__name__} is in deploy form, its BatchNorms are folded: '
            'quantization-aware training wants the training or plain form'
        )
    refuse_norms_that_stay(backbone)
    norm_eval = getattr(backbone, 'norm_eval', False)
    with quiet_torch():
        # One mode for all: torch pairs a convolution with a norm only if they have the same.
        graph = nn.Module.train(traced(backbone))
        mapping = get_default_qat_qconfig_mapping(torch.backends.quantized.engine)
        prepared = prepare_qat_fx(graph, mapping, (torch.zeros(1, 3, 64, 64),))
        _size_observers(prepared)
    for module in prepared.modules():
        # Frozen stages, which the backbone's own train() kept in eval mode, stay frozen.
        if norm_eval or (hasattr(module, 'weight_fake_quant') and not module.weight.requires_grad):
            freeze_bn_stats(module)
    model.backbone = prepared
    return model


def refuse_norms_that_stay(backbone: nn.Module) -> None:
    """Raise a :class:`UserError` if a BatchNorm cannot be folded: no int8 file would have it."""
    folds = {pair.norm for pair in foldable_norms(backbone)}
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and module not in folds:
            raise UserError(
                f'{name} of {type(backbone).__name__} is a BatchNorm that follows no convolution: '
                'quantization-aware training cannot fold it, quantize after training instead'
            )


def _size_observers(prepared: fx.GraphModule) -> None:
    """Let each weight be seen once, so that buffers have the sizes that they are saved with.

    It has to be the folded weight, because that will be rounded. A range moves a hundredth of the
    way in each step: from the range of the bare weight it would need hundreds of steps.
    """
    for module in prepared.modules():
        if hasattr(module, 'weight_fake_quant') and not module.weight.is_meta:
            weight = module.weight.detach()
            if hasattr(module, 'bn'):
                weight = fold_batch_norm(weight, module.bias, module.bn)[0].to(weight.dtype)
            module.weight_fake_quant(weight.detach())


def is_qat(cfg: Config) -> bool:
    """Whether the model of a config is a ``QATForm``."""
    return is_of_type(cfg.model, 'QATForm')


def load_float(cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
    """The deploy form, in float, of a checkpoint that is to be quantized.

    Args:
        cfg (Config): The config that the checkpoint was trained with.
        checkpoint (str | os.PathLike): Training, plain or deploy form; for a config with
            ``QATForm``, what that trained.

    Returns:
        nn.Module: The model, on the CPU and in eval mode.

    Raises:
        UserError: See :func:`mmorepa.checkpoints.load_model`.
    """
    if is_qat(cfg):
        return folded(load_model(cfg, checkpoint).model, cfg)
    return load_model(cfg, checkpoint, 'deploy').model


def int8_qat_backbone(model: nn.Module) -> fx.GraphModule:
    """The backbone of a model with ``QATForm`` in int8, with the ranges that it learned."""
    with quiet_torch(), torch.no_grad():
        return convert_fx(copy.deepcopy(model.backbone).eval().cpu())


def folded(model: nn.Module, cfg: Config) -> nn.Module:
    """The deploy form, in float, of a model with ``QATForm``.

    Args:
        model (nn.Module): The model with fake quantization.
        cfg (Config): The config that builds it.

    Returns:
        nn.Module: A model without fake quantization.
    """
    plain = switch_to_deploy(build_model(float_config(cfg)))
    wanted = plain.state_dict()
    with quiet_torch(), torch.no_grad():
        # Of the backbone what stands beside its convolutions, such as a LayerNorm.
        state_dict = {
            key: value
            for key, value in model.state_dict().items()
            if key in wanted or not key.startswith('backbone.')
        }
        for name, module in model.backbone.named_modules():
            if hasattr(module, 'weight_fake_quant'):
                conv = module.to_float()
                conv = conv[0] if isinstance(conv, nn.Sequential) else conv
                state_dict[f'backbone.{name}.weight'] = conv.weight
                if conv.bias is not None:
                    state_dict[f'backbone.{name}.bias'] = conv.bias
    load_any_form(plain, state_dict, 'what was trained')
    return plain.eval()


def float_config(cfg: Config) -> Config:
    """The float config that a config with ``QATForm`` was made from."""
    cfg = copy.deepcopy(cfg)
    cfg.model.type = cfg.model.pop('architecture')
    return cfg
