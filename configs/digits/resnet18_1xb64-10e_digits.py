_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/digits_bs64.py',
    '../_base_/schedules/imagenet_bs256_120e.py',
    '../_base_/mmpretrain_runtime.py',
]

# As in the ImageNet configs, but for ten classes ...
model = dict(
    backbone=dict(init_cfg=None, zero_init_residual=False),
    head=dict(init_cfg=None, num_classes=10, topk=(1,)),
)

# ... and ten epochs on a CPU, the rate scaled to the smaller batch.
optim_wrapper = dict(optimizer=dict(lr=0.025))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=10,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=10, val_interval=2)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=2),
)
randomness = dict(seed=0)
