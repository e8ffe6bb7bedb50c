_base_ = ['./resnet18_1xb64-10e_digits.py']

# A plain convolution a block; PyTorch's own initial values, as in the ImageNet configs.
model = dict(
    backbone=dict(_delete_=True, type='OREPARepVGG', arch='A0', reparam=None, init_cfg=None),
    head=dict(in_channels=1280),
)
