_base_ = ['./retinanet_r50_fpn_1x_coco.py']

model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(checkpoint='work_dirs/resnet18_4xb64-120e_in1k/epoch_120.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
