_base_ = ['./orepa-resnet18_1xb64-10e_digits.py']

# Narrow, so that its weights are small enough to come with the package.
model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    head=dict(in_channels=64),
)
optim_wrapper = dict(optimizer=dict(lr=0.1))
