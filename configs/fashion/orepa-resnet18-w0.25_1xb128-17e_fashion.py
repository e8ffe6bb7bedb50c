_base_ = ['./resnet18-w0.25_1xb128-17e_fashion.py']

model = dict(backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', mode='squeezed')))
