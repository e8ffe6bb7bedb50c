# mmseg's 80k schedule, with the deep linear stem at a tenth of the learning rate.
_base_ = ['mmseg::_base_/schedules/schedule_80k.py']

# Why a tenth: see coco_1x.py.
optim_wrapper = dict(
    constructor='OREPAOptimWrapperConstructor',
    paramwise_cfg=dict(stem=dict(lr_mult=0.1)),
)

# Down to zero instead of mmseg's 1e-4. That floor would be the same for every group, so that the
# stem's rate would drift up to the others'; PolyLR has no eta_min_ratio.
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=80_000, by_epoch=False)]

# Beside mmseg's; see mmdet_runtime.py.
default_hooks = dict(
    load_from=dict(type='mmorepa.LoadFromHook'),
    non_finite=dict(type='mmorepa.NonFiniteHook'),
    safe_resume=dict(type='mmorepa.SafeResumeHook'),
    squeezed_training=dict(type='mmorepa.SqueezedTrainingHook'),
)
