"""The RepVGG block, with a plain 3 x 3 convolution or an OREPA block in it.

Ding, Zhang, Ma, Han, Ding, Sun, "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, fig. 4;
and Hu et al., CVPR 2022, sec. 4.1, "RepVGG".
"""

from __future__ import annotations

from ..orepa.block import OREPAConv2d
from .normed import (
    ConvBranch,
    IdentityBranch,
    MakeNorm,
    NormedConv2d,
    OREPABranch,
    keeps_shape,
)

#: Initial scales of the OREPA block in a RepVGG block. It has no 1x1 branch, because the RepVGG
#: block has one of its own.
BRANCHES = dict(original=0.25, average=0.25, prior=0.0, pointwise_kxk=0.5, separable=0.5)
#: ``a`` of the ``kaiming_uniform_`` that this OREPA block starts with.
SLOPE = 1.0


class RepVGGConv2d(NormedConv2d):
    """The sum of a k x k convolution, a 1x1 convolution and an identity.

    Each branch ends in a BatchNorm. The identity exists only if the block keeps the shape of its
    input. Kernels are 3 x 3 or 5 x 5. For the arguments see
    :class:`mmorepa.convs.blocks.normed.NormedConv2d`.

    Example:
        >>> [name for name, _ in RepVGGConv2d(8, 8, 3, padding=1).named_children()]
        ['original', 'pointwise', 'identity']
        >>> [name for name, _ in RepVGGConv2d(8, 8, 3, stride=2, padding=1).named_children()]
        ['original', 'pointwise']
    """

    sizes = range(3, 7, 2)

    def add_branches(self, norm: MakeNorm | None, **options) -> None:
        self.original = self.new_original(norm, **options)
        self.pointwise = ConvBranch(self, norm, size=(1, 1))
        if keeps_shape(self):
            self.identity = IdentityBranch(self, norm)

    def new_original(self, norm: MakeNorm | None) -> ConvBranch:
        """The k x k branch."""
        return ConvBranch(self, norm)


class OREPARepVGGConv2d(RepVGGConv2d):
    """The RepVGG block with an OREPA block in place of its 3 x 3 convolution.

    Args:
        options: Options of :class:`mmorepa.OREPAConv2d`. ``branches`` defaults to :data:`BRANCHES`
            and ``slope`` to :data:`SLOPE`.
        args: Arguments of :class:`RepVGGConv2d`.

    Example:
        >>> block = OREPARepVGGConv2d(8, 8, 3, padding=1)
        >>> [name for name, _ in block.original.conv.kernel.named_children()]
        ['original', 'average', 'prior', 'pointwise_kxk', 'separable']
    """

    options = RepVGGConv2d.options + OREPAConv2d.options

    def new_original(
        self, norm: MakeNorm | None, branches=BRANCHES, slope: float = SLOPE, **options
    ) -> ConvBranch:
        return OREPABranch(self, norm, branches=branches, slope=slope, **options)
