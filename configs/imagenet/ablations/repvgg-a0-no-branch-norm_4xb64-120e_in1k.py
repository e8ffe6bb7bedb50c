_base_ = ['../repvgg-a0_4xb64-120e_in1k.py']

model = dict(backbone=dict(reparam=dict(_delete_=True, type='RepVGG', branch_norm=False)))
