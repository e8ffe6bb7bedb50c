_base_ = ['mmpretrain::_base_/default_runtime.py']

custom_imports = dict(imports=['mmorepa.pretrain'], allow_failed_imports=False)
custom_hooks = [
    dict(type='mmorepa.LoadFromHook'),
    dict(type='mmorepa.NonFiniteHook'),
    dict(type='mmorepa.SafeResumeHook'),
    dict(type='mmorepa.SqueezedTrainingHook'),
]
