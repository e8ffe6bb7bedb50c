_base_ = ['../orepa-resnet18_4xb64-120e_in1k.py']

model = dict(backbone=dict(reparam=dict(type='OREPA', mode='offline')))
