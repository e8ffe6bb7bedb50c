_base_ = ['./resnet18-w0.25_1xb128-8e_fashion.py']

model = dict(backbone=dict(type='OREPAResNet', reparam='DBB'))
