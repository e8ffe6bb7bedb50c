"""Detectors and segmentors of the libraries over the operators: they train and they predict."""

import copy
import importlib

import pytest
import torch
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from ops.both import OURS, using

import mmorepa.det  # noqa: F401  (provides the operators)

#: Losses over both forms, relative.
LOSSES = 1e-5
DCN = dict(dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False))
STAGES = dict(stage_with_dcn=(False, True, True, True))

#: A config of mmdet, and what differs in it.
CASES = {
    'Mask R-CNN with DCNv2': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', {**DCN, **STAGES}),
    'RetinaNet with DCNv2': ('retinanet/retinanet_r50_fpn_1x_coco.py', {**DCN, **STAGES}),
    'Faster R-CNN with DCN': (
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {'dcn': dict(type='DCN', deform_groups=1, fallback_on_stride=False), **STAGES},
    ),
    'RepPoints': ('reppoints/reppoints-moment_r50_fpn_1x_coco.py', {}),
    'Guided anchoring': ('guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py', {}),
    'FPN with CARAFE': ('carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py', {}),
    'Deformable DETR': ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', {}),
    'YOLOX': ('yolox/yolox_tiny_8xb8-300e_coco.py', {}),
}
#: The compiled operators of these have no form for the CPU.
ON_GPU_ALONE = {'Guided anchoring', 'FPN with CARAFE'}


def build(name, backbone):
    register_all_modules()
    root = importlib.import_module('mmdet').__path__[0]
    cfg = Config.fromfile(f'{root}/.mim/configs/{name}').model
    cfg.backbone.pop('init_cfg', None)
    cfg.backbone.update(backbone)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()  # Deformable DETR's level embedding is bare memory before
    return model


def batch():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 96, 96, generator=generator)
    boxes = torch.tensor([[8.0, 8, 60, 70], [30, 20, 90, 50]])
    masks = torch.zeros(2, 96, 96, dtype=torch.uint8)
    masks[:, 20:60, 30:60] = 1
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([1, 5]))
    truth.masks = BitmapMasks(masks.numpy(), 96, 96)
    sample = DetDataSample(gt_instances=truth, ignored_instances=InstanceData(bboxes=boxes[:0]))
    shape = dict(img_shape=(96, 96), ori_shape=(96, 96), pad_shape=(96, 96), scale_factor=(1, 1))
    sample.set_metainfo(dict(shape, batch_input_shape=(96, 96), img_id=0))
    return images, [sample]


def step(model):
    """The losses of one image and a gradient's size, then predictions."""
    images, samples = batch()
    model.train()
    torch.manual_seed(1)
    losses = model.loss(images, copy.deepcopy(samples))
    total = sum(
        part
        for name, value in losses.items()
        if 'loss' in name
        for part in (value if isinstance(value, list) else [value])
    )
    model.zero_grad()
    total.mean().backward()
    size = sum(p.grad.abs().sum() for p in model.backbone.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad():
        found = model.predict(images, copy.deepcopy(samples))[0].pred_instances
    return total.mean().item(), size.item(), found


@pytest.mark.parametrize('case', CASES)
def test_trains_and_predicts(case):
    model = build(*CASES[case])
    with using(OURS):
        total, size, found = step(model)
    assert torch.isfinite(torch.tensor([total, size])).all() and size > 0
    assert found.bboxes.shape == (len(found.scores), 4)


@pytest.mark.parametrize('case', [case for case in CASES if case not in ON_GPU_ALONE])
def test_as_over_the_compiled_ones(case, compiled):
    model = build(*CASES[case])
    state = copy.deepcopy(model.state_dict())
    results = []
    for extension in (OURS, compiled):
        model.load_state_dict(state)
        with using(extension):
            results.append(step(model))
    (total, size, found), (wanted_total, wanted_size, wanted) = results
    assert total == pytest.approx(wanted_total, rel=LOSSES)
    assert size == pytest.approx(wanted_size, rel=1e-3)
    assert len(found.scores) == len(wanted.scores)
    assert torch.allclose(found.scores, wanted.scores, atol=1e-4)


def test_a_segmentor_with_psa_masks():
    from mmseg.models.decode_heads import PSAHead

    import mmorepa.seg  # noqa: F401

    head = PSAHead(
        in_channels=8, channels=4, num_classes=3, mask_size=(5, 5), norm_cfg=dict(type='BN'),
        shrink_factor=1,
    )  # fmt: skip
    with using(OURS):
        output = head([torch.randn(2, 8, 3, 3)])
        output.sum().backward()
    assert output.shape == (2, 3, 3, 3) and output.isfinite().all()
