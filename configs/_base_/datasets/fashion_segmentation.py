# Fashion-MNIST on canvases of 160 x 160, laid out as Cityscapes, made by
# tools/dataset_converters/fashion_mnist.py. Read as the digits are, and mirrored.
_base_ = ['./digits_segmentation.py']

dataset = dict(
    data_root='data/fashion/cityscapes',
    metainfo=dict(
        classes=(
            'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
            'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot', 'background',
        )
    ),
)  # fmt: skip

train_dataloader = dict(
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(128, 128)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(dataset=dataset)

test_dataloader = val_dataloader
