"""The import point for mmseg: importing it registers the backbones there, and no others.

In a config: ``custom_imports = dict(imports=['mmorepa.seg'], allow_failed_imports=False)``.
"""

from .environment import require
from .ops import provide

provide()
require('seg')

from .backbones.seg_repvgg import OREPARepVGG  # noqa: E402
from .backbones.seg_resnet import (  # noqa: E402
    OREPAResNet,
    OREPAResNetV1c,
    OREPAResNetV1d,
    OREPAResNeXt,
)

__all__ = ['OREPARepVGG', 'OREPAResNeXt', 'OREPAResNet', 'OREPAResNetV1c', 'OREPAResNetV1d']
