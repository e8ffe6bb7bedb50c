_base_ = ['./deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py']

model = dict(backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', mode='squeezed')))
