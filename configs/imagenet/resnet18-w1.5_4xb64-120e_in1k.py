_base_ = ['./resnet18_4xb64-120e_in1k.py']

model = dict(
    backbone=dict(base_channels=96, stem_channels=96),
    head=dict(in_channels=768),
)
