_base_ = ['./retinanet_r18-w0.25_fpn_1xb8-8e_fashion.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', mode='squeezed'),
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet18-w0.25_1xb128-8e_fashion/epoch_8.pth'),
    ),
)
