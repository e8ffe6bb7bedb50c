_base_ = ['./orepa-resnet18_1xb64-10e_digits.py']

custom_imports = dict(
    imports=['mmorepa.pretrain', 'mmorepa.deploy.quantization'], allow_failed_imports=False
)

# The network in plain form gets fake quantization ...
model = dict(type='QATForm', architecture='ImageClassifier', backbone=dict(reparam=None))
custom_hooks = [dict(type='QATHook', freeze_at=0.75)]
# ... and what tools/convert.py --keep-bn made of the trained checkpoint.
load_from = 'work_dirs/orepa-resnet18_1xb64-10e_digits/plain.pth'

# Four epochs at a twenty-fifth of the rate that it was trained with.
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=4,
        by_epoch=True,
        begin=0,
        end=4,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=4, val_interval=1)
