# The released recipe: 120 epochs, batch 256, SGD, cosine to zero after a warm-up of 5 iterations.
optim_wrapper = dict(
    constructor='OREPAOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    # Every bias at twice the rate; no decay on biases and BatchNorms. Scales do decay.
    paramwise_cfg=dict(bias_lr_mult=2, norm_bias_lr_mult=2, bias_decay_mult=0, norm_decay_mult=0),
)

param_scheduler = [
    # Iteration i of the first five runs at i/5 of the rate. The release starts at exactly zero,
    # from which MMEngine's recursive rule would not come back.
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=120,
        by_epoch=True,
        begin=0,
        end=120,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=120, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=256)
