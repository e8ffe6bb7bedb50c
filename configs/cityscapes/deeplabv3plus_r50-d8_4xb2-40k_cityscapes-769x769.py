_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    'mmseg::_base_/datasets/cityscapes_769x769.py',
    '../_base_/schedules/cityscapes_40k.py',
    '../_base_/mmseg_runtime.py',
]

# A ResNet with a 7x7 stem, as it was pretrained, where mmseg has ResNetV1c.
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(769, 769)),
    backbone=dict(
        type='ResNet',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(align_corners=True),
    auxiliary_head=dict(align_corners=True),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)),
)
