"""Outputs of each kind of model, and their names."""

import pytest
import torch
from mmdet.models import SOLO
from mmdet.models.dense_heads import ATSSHead, FCOSHead, YOLOXHead
from mmseg.models import CascadeEncoderDecoder
from torch import nn
from torch.utils._pytree import tree_leaves

from mmorepa.deploy.export import TensorModel
from mmorepa.deploy.export.tensor_model import head_names
from mmorepa.errors import UserError

IMAGE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SIZES = {level: (-(-64 // 2**level), -(-96 // 2**level)) for level in range(2, 8)}


def outputs(kind, small_model, **options):
    network = TensorModel(small_model(kind), **options)
    with torch.no_grad():
        found = network(IMAGE)
    return network, dict(zip(network.output_names(found), found, strict=True))


def test_a_classifier(small_model):
    network, found = outputs('classifier', small_model)
    assert network.kind == 'classifier'
    assert {name: tuple(t.shape) for name, t in found.items()} == {'logits': (2, 10)}
    with torch.no_grad():
        predicted = network.model(IMAGE, mode='predict')
    scores = torch.stack([sample.pred_score for sample in predicted])
    torch.testing.assert_close(found['logits'].softmax(1), scores)


def test_a_detector(small_model):
    network, found = outputs('detector', small_model)
    assert network.kind == 'detector'
    # Nine anchors, 80 classes in COCO made ten.
    expected = {f'cls_score_p{level}': (2, 90, *SIZES[level]) for level in range(3, 8)}
    expected |= {f'bbox_pred_p{level}': (2, 36, *SIZES[level]) for level in range(3, 8)}
    assert {name: tuple(t.shape) for name, t in found.items()} == expected
    assert list(found) == list(expected)


def test_a_two_stage_detector(small_model):
    network, found = outputs('two-stage detector', small_model)
    assert network.kind == 'two-stage detector'
    expected = {f'feat_p{level}': (2, 8, *SIZES[level]) for level in range(2, 7)}
    expected |= {f'rpn_cls_score_p{level}': (2, 3, *SIZES[level]) for level in range(2, 7)}
    expected |= {f'rpn_bbox_pred_p{level}': (2, 12, *SIZES[level]) for level in range(2, 7)}
    assert {name: tuple(t.shape) for name, t in found.items()} == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize('full_size, shape', [(False, (8, 12)), (True, (64, 96))])
def test_a_segmentor(full_size, shape, small_model):
    network, found = outputs('segmentor', small_model, full_size=full_size)
    assert network.kind == 'segmentor'
    assert {name: tuple(t.shape) for name, t in found.items()} == {'logits': (2, 19, *shape)}
    if full_size:
        model = network.model
        with torch.no_grad():
            expected = model.encode_decode(IMAGE, [dict(img_shape=(64, 96))] * 2)
        torch.testing.assert_close(found['logits'], expected)


def test_full_size_is_for_segmentors(small_model):
    with pytest.raises(UserError, match='full_size is of segmentors, this is a classifier'):
        TensorModel(small_model('classifier'), full_size=True)


RESNET = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)


def test_a_segmentor_with_several_heads():
    """As OCRNet; the last head gives the logits."""
    options = dict(num_classes=3, norm_cfg=dict(type='BN'), align_corners=False, channels=8)
    model = CascadeEncoderDecoder(
        num_stages=2,
        backbone=RESNET,
        decode_head=[
            dict(type='FCNHead', in_channels=32, num_convs=1, concat_input=False, **options),
            dict(type='OCRHead', in_channels=32, ocr_channels=4, **options),
        ],
        test_cfg=dict(mode='whole'),
    )
    network = TensorModel(model, full_size=True)
    with torch.no_grad():
        (found,) = network(IMAGE)
        expected = model.encode_decode(IMAGE, [dict(img_shape=(64, 96))] * 2)
    torch.testing.assert_close(found, expected)


def test_a_detector_without_boxes():
    """SOLO has a mask head, and None for a box head."""
    model = SOLO(
        backbone=RESNET,
        neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
        mask_head=dict(
            type='SOLOHead', num_classes=3, in_channels=8, feat_channels=32, stacked_convs=1
        ),
    )
    network = TensorModel(model)
    with torch.no_grad():
        found = network(IMAGE)
    assert network.kind == 'module'
    assert network.output_names(found) == [f'output_{i}' for i in range(10)]


class Both(nn.Module):
    def forward(self, x):
        return x, [x + 1]


@pytest.mark.parametrize(
    'module, names', [(nn.Identity(), ['output']), (Both(), ['output_0', 'output_1'])]
)
def test_any_module(module, names):
    network = TensorModel(module)
    assert network.kind == 'module'
    assert network.output_names(network(IMAGE)) == names


ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=8,
    scales_per_octave=1,
    strides=[8, 16, 32, 64, 128],
)


@pytest.mark.parametrize(
    'head, options, third, levels',
    [
        (FCOSHead, {}, 'centerness', '23456'),
        (ATSSHead, dict(anchor_generator=ANCHORS), 'centerness', '34567'),
        (YOLOXHead, {}, 'objectness', '345'),
    ],
)
def test_names_of_other_heads(head, options, third, levels):
    """They are the head's own terms, in the order in which it gives them."""
    head = head(3, 8, feat_channels=32, stacked_convs=1, **options)
    found = tree_leaves(head([torch.zeros(1, 8, 4, 4) for _ in levels]))
    names = head_names(head, len(found))
    kinds = ['cls_score', 'bbox_pred', third]
    assert names == [f'{kind}_p{level}' for kind in kinds for level in levels]
    widths = dict(zip(kinds, [3, 4, 1]))
    assert [t.shape[1] for t in found] == [widths[name.rpartition('_')[0]] for name in names]
