"""Small models of each kind."""

import copy
import functools

import pytest

from downstream import narrow
from mmorepa.checkpoints.models import build_model
from mmorepa.engine.run import load_config
from support import CONFIG, ROOT, make_trained_like

#: By kind, a config whose model is made narrow.
CONFIGS = {
    'classifier': CONFIG,
    'deep classifier': CONFIG,
    'detector': ROOT / 'configs/coco/retinanet_orepa-r18_fpn_1x_coco.py',
    'two-stage detector': ROOT / 'configs/coco/faster-rcnn_orepa-r50_fpn_1x_coco.py',
    'segmentor': ROOT / 'configs/cityscapes/pspnet_orepa-r18-d8_4xb2-80k_cityscapes-512x1024.py',
}
OPTIONS = {
    'classifier': {'model.head.in_channels': 32},
    'deep classifier': {'model.head.in_channels': 128, 'model.backbone.depth': 50},
    'detector': {'model.bbox_head.stacked_convs': 1},
}


@functools.cache
def read(kind):
    # Reading one takes as long as exporting its model.
    cfg = load_config(CONFIGS[kind])
    cfg.merge_from_dict(OPTIONS.get(kind, {}))
    options = narrow(cfg)
    if cfg.default_scope == 'mmpretrain':
        options.pop('model.neck.in_channels')
        options.pop('model.neck.out_channels')
    cfg.merge_from_dict(options)
    return cfg


@pytest.fixture
def small_config():
    """Gives the config of a small model by its kind, see :data:`CONFIGS`."""
    return lambda kind: copy.deepcopy(read(kind))


@pytest.fixture
def small_model(small_config):
    """Gives a small model in training form, away from default values."""

    def build(kind, seed=0, plain=False):
        cfg = small_config(kind)
        if plain:
            cfg.model.backbone.type = 'ResNet'
            del cfg.model.backbone.reparam
        return make_trained_like(build_model(cfg), seed)

    return build
