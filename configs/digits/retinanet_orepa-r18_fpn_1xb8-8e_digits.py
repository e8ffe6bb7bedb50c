_base_ = ['./retinanet_r18_fpn_1xb8-8e_digits.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', mode='squeezed'),
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet18_1xb64-10e_digits/epoch_10.pth'),
    ),
)
