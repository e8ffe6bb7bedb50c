_base_ = ['./resnet18-w0.25_1xb128-4e_fashion.py']

# The 7x7 stem stays plain: 16 channels are too few to imitate one.
model = dict(
    backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', where='layer', mode='squeezed'))
)
