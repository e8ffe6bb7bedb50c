"""Comparing two forms of a detector or segmentor part by part."""

import copy

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

import mmorepa.det
import mmorepa.seg  # noqa: F401
from mmorepa import switch_to_deploy
from mmorepa.checkpoints.comparing import compare_forms, input_channels, probe_image
from mmorepa.checkpoints.models import build_model
from support import ROOT, make_trained_like


@pytest.fixture(scope='module')
def detector():
    register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(ROOT / 'configs' / 'coco' / 'faster-rcnn_orepa-r50_fpn_1x_coco.py')
    cfg.model.backbone.update(base_channels=4, stem_channels=4)
    cfg.model.neck.update(in_channels=[16, 32, 64, 128])
    torch.manual_seed(0)
    return make_trained_like(build_model(cfg))


@pytest.mark.parametrize(
    'mean, width, channels',
    [([1, 2, 3], 12, 3), (None, 3, 3), (None, 1, 1), ([1], 1, 1), (None, 12, 3), ([1] * 6, 6, 6)],
)
def test_channels_of_the_images(mean, width, channels):
    """A first convolution that takes twelve is that of YOLOX."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 4, 3), nn.Conv2d(4, 4, 3))
    model.data_preprocessor = nn.Module()
    if mean:
        model.data_preprocessor.mean = torch.tensor(mean).view(-1, 1, 1)
    assert input_channels(model) == channels


def test_forms_agree(detector):
    deployed = switch_to_deploy(detector, inplace=False)
    agreement = compare_forms(detector, deployed, probe_image(64))
    assert agreement.within()
    assert agreement.max_abs > 0


@pytest.mark.parametrize(
    'name',
    [
        'backbone.conv1.bias',
        'backbone.layer4.2.conv3.weight',
        'neck.fpn_convs.1.conv.weight',
        'rpn_head.rpn_reg.weight',
        'roi_head.bbox_head.fc_cls.weight',
    ],
)
def test_a_difference_in_any_part_is_found(detector, name):
    deployed = switch_to_deploy(copy.deepcopy(detector))
    with torch.no_grad():
        deployed.get_parameter(name).mul_(1.1).add_(0.1)
    assert not compare_forms(detector, deployed, probe_image(64)).within()


def stock(name):
    """A model of the libraries' own config, with a narrow backbone of blocks."""
    cfg = get_config(name)
    widths = [4, 8, 16, 32]
    cfg.model.backbone.update(
        type='OREPAResNet', depth=18, base_channels=4, stem_channels=4, init_cfg=None
    )
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = widths[-len(cfg.model.neck.in_channels) :]
    else:
        cfg.model.decode_head.in_channels = widths
    for part in (cfg.model, cfg.model.get('decode_head', {})):
        for key in ('encoder', 'decoder', 'transformer_decoder'):
            if key in part:
                part[key].num_layers = 1
    if 'solo' in name:
        cfg.model.mask_head.update(stacked_convs=1, feat_channels=32)
    torch.manual_seed(0)
    return make_trained_like(build_model(cfg))


@pytest.mark.parametrize(
    'name, part',
    [
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', 'bbox_head.fc_cls'),
        ('mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 'bbox_head.conv_cls'),
        ('mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py', 'decode_head.cls'),
        ('mmdet::solo/solo_r50_fpn_1x_coco.py', 'mask_head.conv_cls'),
    ],
    ids=['DETR', 'CondInst', 'MaskFormer', 'SOLO'],
)
def test_a_model_whose_raw_outputs_do_not_compare(name, part):
    """They want data samples, or a choice by rank is in them."""
    model = stock(name)
    deployed = switch_to_deploy(model, inplace=False)
    assert compare_forms(model, deployed, probe_image(64)).within()
    changed = next(value for key, value in deployed.named_parameters() if key.startswith(part))
    with torch.no_grad():
        changed.mul_(1.1).add_(0.1)
    assert not compare_forms(model, deployed, probe_image(64)).within()
