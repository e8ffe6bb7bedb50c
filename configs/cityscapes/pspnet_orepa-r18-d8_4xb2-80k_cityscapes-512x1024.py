_base_ = ['./pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', mode='squeezed'),
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet18_4xb64-120e_in1k/epoch_120.pth'),
    ),
)
