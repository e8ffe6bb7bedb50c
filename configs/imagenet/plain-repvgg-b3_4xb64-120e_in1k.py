_base_ = ['./plain-repvgg-a0_4xb64-120e_in1k.py']

model = dict(backbone=dict(arch='B3'), head=dict(in_channels=2560))
