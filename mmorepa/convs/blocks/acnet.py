"""The Asymmetric Convolution Block.

Ding, Guo, Ding, Han, "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric
Convolution Blocks", ICCV 2019, fig. 2.
"""

from __future__ import annotations

from .normed import ConvBranch, MakeNorm, NormedConv2d


class ACNetConv2d(NormedConv2d):
    """The sum of a k x k, a 1 x k and a k x 1 convolution, each followed by a BatchNorm.

    For the arguments see :class:`mmorepa.convs.blocks.normed.NormedConv2d`. Kernels are 3 x 3 or
    5 x 5.

    Example:
        >>> block = ACNetConv2d(4, 8, 3, padding=1)
        >>> [tuple(branch.weight.shape[2:]) for branch in block.children()]
        [(3, 3), (1, 3), (3, 1)]
    """

    sizes = range(3, 7, 2)

    def add_branches(self, norm: MakeNorm | None) -> None:
        size = self.kernel_size[0]
        self.original = ConvBranch(self, norm)
        self.horizontal = ConvBranch(self, norm, size=(1, size))
        self.vertical = ConvBranch(self, norm, size=(size, 1))
