# scikit-learn's scanned digits, 48 x 48, made by tools/dataset_converters/digits.py.
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

loader = dict(
    batch_size=64, num_workers=1, persistent_workers=True, collate_fn=dict(type='default_collate')
)

train_dataloader = dict(
    **loader,
    dataset=dict(
        type='CustomDataset',
        data_root='data/digits/imagenet',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=48),
            dict(type='RandomCrop', crop_size=48, padding=4, padding_mode='edge'),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        type='CustomDataset',
        data_root='data/digits/imagenet',
        data_prefix='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=48),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
