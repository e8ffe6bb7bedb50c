_base_ = [
    'mmpretrain::_base_/models/repvgg-A0_in1k.py',
    '../_base_/datasets/imagenet_bs64.py',
    '../_base_/schedules/imagenet_bs256_120e.py',
    '../_base_/mmpretrain_runtime.py',
]

# A plain convolution a block; as in the release, PyTorch's own initial values.
model = dict(
    backbone=dict(type='OREPARepVGG', reparam=None, init_cfg=None),
    head=dict(init_cfg=None),
)
