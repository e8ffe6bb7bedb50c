_base_ = ['./pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py']

model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(checkpoint='torchvision://resnet18'),
    ),
    decode_head=dict(in_channels=512, channels=128),
    auxiliary_head=dict(in_channels=256, channels=64),
)
