"""The over-parameterised branches of MobileOne.

Vasu, Gabriel, Zhu, Tuzel, Ranjan, "MobileOne: An Improved One millisecond Mobile Backbone", CVPR
2023, fig. 3. In the paper a block is a depthwise convolution followed by a pointwise one. The block
here stands for either of them.
"""

from __future__ import annotations

from ..arguments import check_integers
from .normed import ConvBranch, IdentityBranch, MakeNorm, NormedConv2d, keeps_shape


class MobileOneConv2d(NormedConv2d):
    """The sum of several k x k convolutions, a 1x1 convolution and an identity.

    Each branch ends in a BatchNorm. The identity exists only if the block keeps the shape of its
    input, and the extra 1x1 convolution only if k > 1. For the other arguments see
    :class:`mmorepa.convs.blocks.normed.NormedConv2d`.

    Args:
        copies (int): The number of k x k convolutions, at least 1. Defaults to 4, as in
            MobileOne-S0.

    Raises:
        UserError: If ``copies`` is no integer of at least 1.

    Example:
        >>> block = MobileOneConv2d(8, 8, 3, padding=1, groups=8, copies=2)
        >>> [name for name, _ in block.named_children()]
        ['original0', 'original1', 'pointwise', 'identity']
    """

    sizes = range(1, 7, 2)
    options = (*NormedConv2d.options, 'copies')

    def add_branches(self, norm: MakeNorm | None, copies: int = 4) -> None:
        check_integers('MobileOneConv2d', copies=copies)
        for i in range(copies):
            self.add_module(f'original{i}', ConvBranch(self, norm))
        if self.kernel_size != (1, 1):
            self.pointwise = ConvBranch(self, norm, size=(1, 1))
        if keeps_shape(self):
            self.identity = IdentityBranch(self, norm)
