"""The mixin that the re-parameterised ResNets of all OpenMMLab libraries share."""

from __future__ import annotations

import re

from .activation_checkpoint import checkpoint_blocks
from .reparam_mixin import ReparamMixin

#: The convolutions of a ResNet that are re-parameterised: stem, residual blocks and shortcuts,
#: as mmpretrain, mmdet and mmseg name them. Convolutions of plugins stay plain.
_CONVS = re.compile(
    r'conv1|stem\.\d+(\.conv)?|(?P<block>layer\d+\.\d+)\.(conv\d|(?P<shortcut>downsample)\.\d+)'
)


class ReparamResNetMixin(ReparamMixin):
    """Re-parameterises a library's ResNet: the stem, the residual blocks, and the shortcuts.

    The projection shortcut of a bottleneck is replaced. That of a basic block stays plain, as in
    the paper's ResNet-18 and -34. Of these convolutions a block replaces those whose kernel size it
    supports: OREPA all of them, DBB the 3 x 3 ones. For the arguments see
    :class:`mmorepa.backbones.reparam_mixin.ReparamMixin`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        checkpoint_blocks(self)

    def is_reparameterized(self, name: str) -> bool:
        match = _CONVS.fullmatch(name)
        if match and match['shortcut']:
            return hasattr(self.get_submodule(match['block']), 'conv3')
        return match is not None
