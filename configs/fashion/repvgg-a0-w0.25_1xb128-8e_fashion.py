_base_ = ['./plain-repvgg-a0-w0.25_1xb128-8e_fashion.py']

model = dict(backbone=dict(reparam='RepVGG'))
