# Fashion-MNIST on canvases of 160 x 160, COCO-style, made by
# tools/dataset_converters/fashion_mnist.py. Read as the digits are, and mirrored.
_base_ = ['./digits_detection.py']

dataset = dict(
    data_root='data/fashion/coco',
    metainfo=dict(
        classes=(
            'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
            'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
        )
    ),
)  # fmt: skip

train_dataloader = dict(
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(160, 160), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(dataset=dataset)
val_evaluator = dict(ann_file='data/fashion/coco/annotations/instances_val2017.json')

test_dataloader = val_dataloader
test_evaluator = val_evaluator
