"""The Diverse Branch Block, also called ACNetv2.

Ding, Zhang, Han, Ding, "Diverse Branch Block: Building a Convolution as an Inception-like Unit",
CVPR 2021, fig. 2.
"""

from __future__ import annotations

from .normed import AverageBranch, ConvBranch, MakeNorm, NormedConv2d, PointwiseKxKBranch


class DBBConv2d(NormedConv2d):
    """The sum of four branches: k x k; 1x1; 1x1, then average; 1x1, then k x k.

    There is a BatchNorm behind every convolution and behind the average. As in the authors' code, a
    depthwise block has no 1x1 branch, no 1x1 convolution before the average, and twice the channels
    between the 1x1 and the k x k convolution. For the arguments see
    :class:`mmorepa.convs.blocks.normed.NormedConv2d`. Kernels are 3 x 3 or 5 x 5; convolutions of
    other sizes stay plain, as in the release.

    Example:
        >>> block = DBBConv2d(4, 8, 3, padding=1)
        >>> block(torch.rand(2, 4, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
        >>> [name for name, _ in block.named_children()]
        ['original', 'pointwise', 'average', 'pointwise_kxk']
    """

    sizes = range(3, 7, 2)

    def add_branches(self, norm: MakeNorm | None) -> None:
        self.original = ConvBranch(self, norm)
        if not self.is_depthwise:
            self.pointwise = ConvBranch(self, norm, size=(1, 1))
        self.average = AverageBranch(self, norm)
        middle = 2 * self.in_channels if self.is_depthwise else self.in_channels
        self.pointwise_kxk = PointwiseKxKBranch(self, norm, middle)
