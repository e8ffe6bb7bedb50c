"""Configs of MMEngine's new style, with classes in place of names, by ``read_base``."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmorepa import verify
from mmorepa.checkpoints import build_model
from mmorepa.checkpoints.conversion import convert
from mmorepa.convs import ReparamConv2d
from mmorepa.engine.run import load_config
from mmorepa.pretrain import OREPAResNet

#: The plain configs, as a user has them.
PLAIN = {
    'pretrain': """
from mmengine.optim import OptimWrapper
from mmpretrain.models import (
    ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead,
    ResNet,
)
from torch.optim import SGD

model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=3),
    backbone=dict(type=ResNet, depth=18, base_channels=4, stem_channels=4),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead, num_classes=3, in_channels=32, loss=dict(type=CrossEntropyLoss)
    ),
)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
""",
    'det': """
from mmdet.models import (
    FPN, DetDataPreprocessor, FocalLoss, L1Loss, ResNet, RetinaHead, RetinaNet
)
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(type=ResNet, depth=18, base_channels=4, stem_channels=4),
    neck=dict(type=FPN, in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
    bbox_head=dict(
        type=RetinaHead, num_classes=2, in_channels=8, feat_channels=8,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=4, scales_per_octave=3, ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss), loss_bbox=dict(type=L1Loss),
    ),
)
default_scope = 'mmdet'
""",
    'seg': """
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, ResNet, SegDataPreProcessor

norm_cfg = dict(type='BN')
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(32, 32)),
    backbone=dict(
        type=ResNet, depth=18, base_channels=4, stem_channels=4, norm_cfg=norm_cfg,
        contract_dilation=True,
    ),
    decode_head=dict(
        type=FCNHead, in_channels=32, channels=4, num_classes=2, norm_cfg=norm_cfg,
        loss_decode=dict(type=CrossEntropyLoss),
    ),
    test_cfg=dict(mode='whole'),
)
default_scope = 'mmseg'
""",
}
#: What makes an OREPA config of each, as on the page, with the number of blocks.
OREPA = """
from mmengine.config import read_base

with read_base():
    from .plain import *
from mmorepa.{library} import {name}

model['backbone'].update({changes})
"""
CHANGES = {
    'pretrain': ("type=OREPAResNet, reparam=dict(type='OREPA', mode='squeezed')", 17),
    'det': ("type=OREPAResNet, reparam=dict(type='OREPA', where='layer')", 16),
    'seg': ('type=OREPAResNetV1c', 19),
}


@pytest.fixture
def path(library, tmp_path):
    (tmp_path / 'plain.py').write_text(PLAIN[library])
    changes = CHANGES[library][0]
    name = changes.split(',')[0].removeprefix('type=')
    text = OREPA.format(library=library, name=name, changes=changes)
    (tmp_path / 'orepa.py').write_text(text)
    return tmp_path / 'orepa.py'


@pytest.mark.parametrize('library', PLAIN)
def test_is_built_and_converted(library, path, tmp_path):
    """The config beside the deploy form has names, as old ones have."""
    cfg = load_config(path)
    model = build_model(cfg).eval()
    blocks = sum(isinstance(module, ReparamConv2d) for module in model.modules())
    assert blocks == CHANGES[library][1]
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    convert(cfg, tmp_path / 'a.pth', tmp_path / 'deploy.pth')
    deploy = build_model(load_config(tmp_path / 'deploy.py')).eval()
    deploy.load_state_dict(torch.load(tmp_path / 'deploy.pth')['state_dict'])
    assert verify(model.backbone, deploy.backbone, torch.randn(1, 3, 64, 64)).within()


@pytest.mark.parametrize('library', ['pretrain'])
def test_trains_by_the_libraries_own_way(library, path, tmp_path):
    """As ``mim train`` does: the Runner gets the classes themselves."""
    with open(path, 'a') as file:
        file.write("""
from mmorepa.engine import OREPAOptimWrapperConstructor, SqueezedTrainingHook

optim_wrapper.update(
    constructor=OREPAOptimWrapperConstructor, paramwise_cfg=dict(stem=dict(lr_mult=0.1))
)
custom_hooks = [dict(type=SqueezedTrainingHook)]
""")
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.type is OREPAResNet
    optim_wrapper = cfg.pop('optim_wrapper')
    cfg.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), log_level='ERROR'))
    runner = Runner.from_cfg(cfg)
    wrapper = runner.build_optim_wrapper(optim_wrapper)
    assert type(wrapper).__name__ == 'SqueezedOptimWrapper'
    block = runner.model.backbone.conv1
    before = block.squeeze().detach().clone()
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wrapper.update_params(runner.model.backbone(image)[-1].square().mean())
    assert not torch.equal(block.squeeze(), before)
