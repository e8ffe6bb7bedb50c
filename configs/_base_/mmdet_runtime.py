_base_ = ['mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['mmorepa.det'], allow_failed_imports=False)
# Here and not in custom_hooks, so that a config with hooks of its own does not replace them.
default_hooks = dict(
    load_from=dict(type='mmorepa.LoadFromHook'),
    non_finite=dict(type='mmorepa.NonFiniteHook'),
    safe_resume=dict(type='mmorepa.SafeResumeHook'),
    squeezed_training=dict(type='mmorepa.SqueezedTrainingHook'),
)
