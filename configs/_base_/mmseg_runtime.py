_base_ = ['mmseg::_base_/default_runtime.py']

custom_imports = dict(imports=['mmorepa.seg'], allow_failed_imports=False)
