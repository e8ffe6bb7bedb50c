# 224 x 224 crops; resized by Pillow, bilinear, as torchvision did in the released recipe.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64_pil_resize.py']

loader = dict(pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate'))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
