"""The import point for mmseg: importing it registers the backbones there, and no others.

It also makes the names of the Cityscapes configs known to ``mmseg.apis.MMSegInferencer``.

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
from .named_configs import add_to_inferencers  # noqa: E402

add_to_inferencers('mmseg')

__all__ = ['OREPARepVGG', 'OREPAResNeXt', 'OREPAResNet', 'OREPAResNetV1c', 'OREPAResNetV1d']
