_base_ = ['./resnet18_4xb64-120e_in1k.py']

model = dict(
    backbone=dict(base_channels=128, stem_channels=128),
    head=dict(in_channels=1024),
)
