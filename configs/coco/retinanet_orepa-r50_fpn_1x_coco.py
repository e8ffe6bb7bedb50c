_base_ = ['./retinanet_r50_fpn_1x_coco.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', mode='squeezed'),
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet50_4xb64-120e_in1k/epoch_120.pth'),
    ),
)
