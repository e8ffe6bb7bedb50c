_base_ = ['./orepa-resnet18_1xb64-10e_digits.py']

# Weight decay on the kernels that the branches add up to; see docs/training_options.md.
optim_wrapper = dict(paramwise_cfg=dict(kernel_decay=True))
