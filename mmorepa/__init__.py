"""mmorepa: Online Convolutional Re-parameterization for OpenMMLab.

Importing this package is light: it needs torch alone, and where MMEngine is installed it registers
``OREPAConv2d`` and ``ExpandConv2d`` in MMEngine's root ``MODELS``, so that
``conv_cfg=dict(type='OREPAConv2d')`` works in any OpenMMLab model. The backbones are registered by
importing ``mmorepa.pretrain``, ``mmorepa.det`` or ``mmorepa.seg``, each of which needs its own
library alone.
"""

import warnings
from importlib.util import find_spec

from .convs import (
    ExpandConv2d,
    OREPAConv2d,
    SqueezedTraining,
    check_optimizer,
    reparameterize,
    squeeze,
    switch_to_deploy,
    verify,
)
from .version import __version__

if find_spec('mmengine'):
    with warnings.catch_warnings(record=True):
        # MMEngine makes torch warn of its functional optimizers, past every filter.
        import mmengine.optim  # noqa: F401
    from . import engine  # noqa: F401  (registers)

__all__ = [
    'ExpandConv2d',
    'OREPAConv2d',
    'SqueezedTraining',
    '__version__',
    'check_optimizer',
    'reparameterize',
    'squeeze',
    'switch_to_deploy',
    'verify',
]
