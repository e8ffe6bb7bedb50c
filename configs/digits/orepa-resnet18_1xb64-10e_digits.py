_base_ = ['./resnet18_1xb64-10e_digits.py']

model = dict(backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', mode='squeezed')))
