_base_ = ['mmpretrain::_base_/default_runtime.py']

custom_imports = dict(imports=['mmorepa.pretrain'], allow_failed_imports=False)
# mmpretrain's, without the _scope_ of what is inherited, which its browse_dataset.py refuses.
visualizer = dict(
    _delete_=True, type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
custom_hooks = [
    dict(type='mmorepa.LoadFromHook'),
    dict(type='mmorepa.NonFiniteHook'),
    dict(type='mmorepa.SafeResumeHook'),
    dict(type='mmorepa.SqueezedTrainingHook'),
]
