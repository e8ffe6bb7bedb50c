"""The import point for mmpretrain: importing it registers the backbones there, and no others.

It also makes the names of the ImageNet configs known to ``mmpretrain.get_model``.

In a config: ``custom_imports = dict(imports=['mmorepa.pretrain'], allow_failed_imports=False)``.
"""

from .environment import require

require('pretrain')

from .backbones.pretrain_repvgg import OREPARepVGG  # noqa: E402
from .backbones.pretrain_resnet import (  # noqa: E402
    OREPAResNet,
    OREPAResNetV1c,
    OREPAResNetV1d,
    OREPAResNeXt,
)
from .named_configs import add_to_model_hub  # noqa: E402

add_to_model_hub()

__all__ = ['OREPARepVGG', 'OREPAResNeXt', 'OREPAResNet', 'OREPAResNetV1c', 'OREPAResNetV1d']
