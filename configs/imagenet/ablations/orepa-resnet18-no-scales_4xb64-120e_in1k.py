_base_ = ['../orepa-resnet18_4xb64-120e_in1k.py']

# Scales of None: no scaling layers, in the stem neither.
model = dict(
    backbone=dict(
        reparam=dict(
            type='OREPA',
            branches=dict(
                original=None,
                average=None,
                prior=None,
                pointwise_kxk=None,
                pointwise=None,
                separable=None,
            ),
        ),
    ),
)
