_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    '../_base_/datasets/digits_segmentation.py',
    '../_base_/schedules/cityscapes_40k.py',
    '../_base_/mmseg_runtime.py',
]

# A ResNet with a 7x7 stem, as it was pretrained; a narrow head, for a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
# Nine pixels of ten are background.
loss = dict(class_weight=[1.0] * 10 + [0.1])
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        type='ResNet',
        depth=18,
        norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_1xb64-10e_digits/epoch_10.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        in_channels=512, channels=64, num_classes=11, norm_cfg=norm_cfg, loss_decode=loss
    ),
    auxiliary_head=dict(
        in_channels=256, channels=32, num_classes=11, norm_cfg=norm_cfg, loss_decode=loss
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=600, by_epoch=False)]
train_cfg = dict(max_iters=600, val_interval=300)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=300, max_keep_ckpts=2),
)
randomness = dict(seed=0)
