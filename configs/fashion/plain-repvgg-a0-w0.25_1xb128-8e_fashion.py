_base_ = ['./resnet18-w0.25_1xb128-8e_fashion.py']

# A plain convolution a block; PyTorch's own initial values, as in the ImageNet configs.
model = dict(
    backbone=dict(
        _delete_=True,
        type='OREPARepVGG',
        arch='A0',
        base_channels=16,
        reparam=None,
        init_cfg=None,
    ),
    head=dict(in_channels=320),
)
