"""The over-parameterised branches of MobileOne.

Vasu, Gabriel, Zhu, Tuzel, Ranjan, "MobileOne: An Improved One millisecond Mobile Backbone", CVPR
2023, fig. 3. There a block is a depthwise and a pointwise convolution in turn; this is either.
"""

from __future__ import annotations

from ...errors import UserError
from .normed import ConvBranch, IdentityBranch, MakeNorm, NormedConv2d, keeps_shape


class MobileOneConv2d(NormedConv2d):
    """The same convolution several times; 1x1; identity where it fits. A BatchNorm behind each.

    Kernels of 1 x 1 have no second kind of 1x1 branch. For the other arguments see
    :class:`mmorepa.convs.blocks.normed.NormedConv2d`.

    Args:
        copies (int): How often there is the convolution, at least once. Defaults to 4, as in
            MobileOne-S0.

    Raises:
        UserError: If ``copies`` is less than one.

    Example:
        >>> block = MobileOneConv2d(8, 8, 3, padding=1, groups=8, copies=2)
        >>> [name for name, _ in block.named_children()]
        ['original0', 'original1', 'pointwise', 'identity']
    """

    sizes = range(1, 7, 2)
    options = (*NormedConv2d.options, 'copies')

    def add_branches(self, norm: MakeNorm | None, copies: int = 4) -> None:
        if copies < 1:
            raise UserError(f'MobileOneConv2d: copies={copies}, wanted at least 1')
        for i in range(copies):
            self.add_module(f'original{i}', ConvBranch(self, norm))
        if self.kernel_size != (1, 1):
            self.pointwise = ConvBranch(self, norm, size=(1, 1))
        if keeps_shape(self):
            self.identity = IdentityBranch(self, norm)
