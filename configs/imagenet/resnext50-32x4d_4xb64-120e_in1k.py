_base_ = [
    'mmpretrain::_base_/models/resnext50_32x4d.py',
    '../_base_/datasets/imagenet_bs64.py',
    '../_base_/schedules/imagenet_bs256_120e.py',
    '../_base_/mmpretrain_runtime.py',
]

# As in the release: PyTorch's own initial values, and no zero initialisation of residuals.
model = dict(
    backbone=dict(init_cfg=None, zero_init_residual=False),
    head=dict(init_cfg=None),
)
