_base_ = ['./plain-repvgg-a0_1xb64-10e_digits.py']

model = dict(backbone=dict(reparam=dict(_delete_=True, type='OREPA', mode='squeezed')))
