_base_ = ['./pspnet_r18-w0.25-d8_1xb4-1600_fashion-128x128.py']

# From the plain weights. The 7x7 stem stays plain: 16 channels are too few to imitate one.
model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', where='layer', mode='squeezed'),
    ),
)
