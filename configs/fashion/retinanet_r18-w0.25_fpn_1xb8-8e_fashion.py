_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/fashion_detection.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/mmdet_runtime.py',
]

# A quarter as wide, as it was pretrained; a narrow neck and head, for a CPU. Anchors half as large
# as usual: the smallest clothes are 20 pixels wide.
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        depth=18,
        base_channels=16,
        stem_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='configs/fashion/resnet18-w0.25_1xb128-17e_fashion.safetensors',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=64),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.015), clip_grad=dict(max_norm=10, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', begin=0, end=8, by_epoch=True, milestones=[6], gamma=0.1),
]
train_cfg = dict(max_epochs=8, val_interval=8)

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=8, max_keep_ckpts=1),
)
randomness = dict(seed=0)
