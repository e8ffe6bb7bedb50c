_base_ = ['./cascade-rcnn_r50_fpn_1x_coco.py']

model = dict(backbone=dict(type='OREPAResNet', reparam=dict(type='OREPA', mode='squeezed')))
