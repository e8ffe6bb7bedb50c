_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/fashion_bs128.py',
    '../_base_/schedules/imagenet_bs256_120e.py',
    '../_base_/mmpretrain_runtime.py',
]

# As in the ImageNet configs, but a quarter as wide and for ten classes ...
model = dict(
    backbone=dict(base_channels=16, stem_channels=16, init_cfg=None, zero_init_residual=False),
    head=dict(init_cfg=None, in_channels=128, num_classes=10, topk=(1,)),
)

# ... and eight epochs, the rate scaled to the smaller batch; a study chooses its own.
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=8,
        by_epoch=True,
        begin=0,
        end=8,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=8, val_interval=8)

default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(interval=8, max_keep_ckpts=1),
)
randomness = dict(seed=0)
