_base_ = ['./plain-repvgg-b3_4xb64-120e_in1k.py']

model = dict(backbone=dict(reparam=dict(_delete_=True, type='OREPA', mode='squeezed')))
