"""Comparing two forms of a two-stage detector part by part."""

import copy

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config

import mmorepa.det  # noqa: F401
from mmorepa import switch_to_deploy
from mmorepa.checkpoints.comparing import compare_forms, probe_image
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
