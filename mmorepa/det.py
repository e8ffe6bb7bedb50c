"""The import point for mmdet: importing it registers the backbones there, and no others.

It also makes the names of the COCO configs known to ``mmdet.apis.DetInferencer``.

In a config: ``custom_imports = dict(imports=['mmorepa.det'], allow_failed_imports=False)``.
"""

from .environment import require
from .ops import provide

provide()
require('det')

from .backbones.det_repvgg import OREPARepVGG  # noqa: E402
from .backbones.det_resnet import OREPAResNet, OREPAResNetV1d, OREPAResNeXt  # noqa: E402
from .named_configs import add_to_inferencers  # noqa: E402

add_to_inferencers('mmdet')

__all__ = ['OREPARepVGG', 'OREPAResNeXt', 'OREPAResNet', 'OREPAResNetV1d']
