_base_ = ['./retinanet_r50_fpn_1x_coco.py']

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='work_dirs/resnet101_4xb64-120e_in1k/epoch_120.pth'),
    ),
)
