_base_ = ['./pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py']

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='torchvision://resnet101'),
    ),
)
