_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    '../_base_/datasets/fashion_segmentation.py',
    '../_base_/schedules/cityscapes_40k.py',
    '../_base_/mmseg_runtime.py',
]

# A ResNet a quarter as wide and with a 7x7 stem, as it was pretrained; a narrow head, for a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
# Nine pixels of ten are background.
loss = dict(class_weight=[1.0] * 10 + [0.1])
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='configs/fashion/resnet18-w0.25_1xb128-17e_fashion.safetensors',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        in_channels=128, channels=64, num_classes=11, norm_cfg=norm_cfg, loss_decode=loss
    ),
    auxiliary_head=dict(
        in_channels=64, channels=32, num_classes=11, norm_cfg=norm_cfg, loss_decode=loss
    ),
)

# Four epochs of 1,600 pictures.
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=1600, by_epoch=False)]
train_cfg = dict(max_iters=1600, val_interval=1600)

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=1600, max_keep_ckpts=1),
)
randomness = dict(seed=0)
