_base_ = ['./resnet18-w1.5_4xb64-120e_in1k.py']

model = dict(backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', mode='squeezed')))
