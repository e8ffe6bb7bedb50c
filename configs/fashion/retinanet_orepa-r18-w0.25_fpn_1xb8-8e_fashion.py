_base_ = ['./retinanet_r18-w0.25_fpn_1xb8-8e_fashion.py']

# From the plain weights. The 7x7 stem stays plain: 16 channels are too few to imitate one.
model = dict(
    backbone=dict(
        type='OREPAResNet',
        reparam=dict(type='OREPA', where='layer', mode='squeezed'),
    ),
)
