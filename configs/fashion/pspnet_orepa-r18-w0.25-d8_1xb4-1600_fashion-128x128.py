_base_ = ['./pspnet_r18-w0.25-d8_1xb4-1600_fashion-128x128.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', mode='squeezed'),
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet18-w0.25_1xb128-8e_fashion/epoch_8.pth'),
    ),
)
