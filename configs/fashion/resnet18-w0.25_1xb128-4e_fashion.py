_base_ = ['./resnet18-w0.25_1xb128-8e_fashion.py']

# Four epochs more, from what seventeen have left.
load_from = 'configs/fashion/resnet18-w0.25_1xb128-17e_fashion.safetensors'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=4,
        by_epoch=True,
        begin=0,
        end=4,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4))
