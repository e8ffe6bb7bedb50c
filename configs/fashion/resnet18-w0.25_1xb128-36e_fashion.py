_base_ = ['./resnet18-w0.25_1xb128-8e_fashion.py']

# For a comparison at equal time; how long both train is in the report, see docs/evidence.md.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=36,
        by_epoch=True,
        begin=0,
        end=36,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=36, val_interval=36)
default_hooks = dict(checkpoint=dict(interval=36))
