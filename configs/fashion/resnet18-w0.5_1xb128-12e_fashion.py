_base_ = ['./resnet18-w0.5_1xb128-8e_fashion.py']

# Equal time: twelve plain epochs take as long as eight of OREPA, see docs/evidence.md.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=12,
        by_epoch=True,
        begin=0,
        end=12,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=12, val_interval=12)
default_hooks = dict(checkpoint=dict(interval=12))
