"""What the re-parameterised ResNets of all OpenMMLab libraries share."""

from __future__ import annotations

import re

from .activation_checkpoint import checkpoint_blocks
from .reparam_mixin import ReparamMixin

#: The convolutions of a ResNet that are re-parameterised: stem, residual blocks and shortcuts,
#: as mmpretrain, mmdet and mmseg name them. Plugins keep theirs.
_CONVS = re.compile(
    r'conv1|stem\.\d+(\.conv)?|(?P<block>layer\d+\.\d+)\.(conv\d|(?P<shortcut>downsample)\.\d+)'
)


class ReparamResNetMixin(ReparamMixin):
    """Re-parameterises a library's ResNet: the stem, the residual blocks, and shortcuts.

    A bottleneck's projection shortcut is among them; a basic block's stays plain, as in the paper's
    ResNet-18 and -34. Which kernel sizes of these a block takes is its own affair: OREPA takes all,
    DBB those of 3 x 3. For the arguments see :class:`mmorepa.backbones.reparam_mixin.ReparamMixin`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        checkpoint_blocks(self)

    def is_reparameterized(self, name: str) -> bool:
        match = _CONVS.fullmatch(name)
        if match and match['shortcut']:
            return hasattr(self.get_submodule(match['block']), 'conv3')
        return match is not None
