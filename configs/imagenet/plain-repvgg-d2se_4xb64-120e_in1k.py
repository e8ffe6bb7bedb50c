_base_ = ['./plain-repvgg-a0_4xb64-120e_in1k.py']

model = dict(backbone=dict(arch='D2se'), head=dict(in_channels=2560))
