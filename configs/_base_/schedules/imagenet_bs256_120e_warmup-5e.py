# The released recipe with a warm-up of 5 epochs, which may be what "5" was meant to say.
_base_ = ['./imagenet_bs256_120e.py']

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-8,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=115,
        by_epoch=True,
        begin=5,
        end=120,
        convert_to_iter_based=True,
    ),
]
