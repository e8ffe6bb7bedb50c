_base_ = ['../dbb-resnet18_4xb64-120e_in1k.py']

model = dict(backbone=dict(reparam=dict(_delete_=True, type='DBB', branch_norm=False)))
