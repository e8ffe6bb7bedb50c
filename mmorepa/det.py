"""The import point for mmdet: importing it registers the backbones there, and no others.

In a config: ``custom_imports = dict(imports=['mmorepa.det'], allow_failed_imports=False)``.
"""

from .environment import require
from .ops import provide

provide()
require('det')

from .backbones.det_repvgg import OREPARepVGG  # noqa: E402
from .backbones.det_resnet import OREPAResNet, OREPAResNetV1d, OREPAResNeXt  # noqa: E402

__all__ = ['OREPARepVGG', 'OREPAResNeXt', 'OREPAResNet', 'OREPAResNetV1d']
