_base_ = ['./resnet18_1xb64-10e_digits.py']

# The plain network, trained as OREPA's branches would train it; see docs/training_options.md.
model = dict(backbone=dict(type='OREPAResNet', reparam='TweakedOREPA'))
