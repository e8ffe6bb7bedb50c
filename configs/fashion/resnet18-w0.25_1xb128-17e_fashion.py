_base_ = ['./resnet18-w0.25_1xb128-8e_fashion.py']

# For a comparison at equal time; how long both train is in the report, see docs/evidence.md.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=17,
        by_epoch=True,
        begin=0,
        end=17,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=17, val_interval=17)
default_hooks = dict(checkpoint=dict(interval=17))
