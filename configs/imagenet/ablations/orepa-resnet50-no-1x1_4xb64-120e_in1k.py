_base_ = ['../orepa-resnet50_4xb64-120e_in1k.py']

# The stem, and of each bottleneck its 3x3 convolution.
model = dict(backbone=dict(reparam=dict(type='OREPA', where='^conv1$|conv2$')))
