# mmdet's 1x schedule, with the deep linear stem at a tenth of the learning rate.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py']

# The tenth is our caution, not the paper's value, which was never published. Measured on the
# scanned digits with `tools/analyze.py effective-lr`, an OREPA ResNet-18 pretrained on them for six
# epochs: the stem moves 2,000 to 8,000 times as far as a plain convolution with its kernel, which
# has grown large; relative to its size it moves like the other blocks at 0.3 (RetinaNet with
# norm_eval), 0.6 (classifier), 0.9 (PSPNet) or 1.2 (RetinaNet) times their rate. Fine-tuned to
# negative pictures for two epochs with two seeds, 0.01, 0.1 and 1 could not be told apart, and 10
# was behind after the first. On Fashion-MNIST's canvases a RetinaNet was better with 1 than with
# 0.1 (docs/evidence.md). On ImageNet and COCO nothing was measured: measure yours. Where the stem
# is frozen, as by mmdet's usual frozen_stages=1, the value has no effect.
optim_wrapper = dict(
    constructor='OREPAOptimWrapperConstructor',
    paramwise_cfg=dict(stem=dict(lr_mult=0.1)),
)
