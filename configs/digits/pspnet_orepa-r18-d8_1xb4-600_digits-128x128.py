_base_ = ['./pspnet_r18-d8_1xb4-600_digits-128x128.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', mode='squeezed'),
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet18_1xb64-10e_digits/epoch_10.pth'),
    ),
)
