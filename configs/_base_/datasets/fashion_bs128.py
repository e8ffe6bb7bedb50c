# Fashion-MNIST, 28 x 28 on 32 x 32, put in place by tools/dataset_converters/fashion_mnist.py.
data_preprocessor = dict(
    num_classes=10,
    # Of the training scans. Three of each: that makes three channels of the one there is.
    mean=[72.94, 72.94, 72.94],
    std=[90.02, 90.02, 90.02],
)

# No worker: sending 128 labels from one process to another takes longer than loading the scans.
loader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
)
dataset = dict(type='FashionMNIST', data_root='data/fashion/mnist/full', download=False)

train_dataloader = dict(
    **loader,
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        **dataset,
        split='test',
        test_mode=True,
        pipeline=[
            # Nothing is random about it: with two pixels at each side a scan is 32 wide.
            dict(type='RandomCrop', crop_size=32, padding=2),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
