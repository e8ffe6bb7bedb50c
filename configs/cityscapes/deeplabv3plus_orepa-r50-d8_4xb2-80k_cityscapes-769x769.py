_base_ = ['./deeplabv3plus_r50-d8_4xb2-80k_cityscapes-769x769.py']

model = dict(backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', mode='squeezed')))
