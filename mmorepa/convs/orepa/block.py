"""OREPAConv2d: a convolution whose weight is generated (paper, sec. 3.2 and 3.3).

An OREPA block has a single BatchNorm, after the squeezed convolution. Without this BatchNorm the
block is a convolution, and can be used wherever an ``nn.Conv2d`` can. The kernel size decides how
its kernel is made: by the 1x1 block, the k x k block (3 <= k < 7), or the deep linear stem
(k >= 7).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .. import kernels
from ..arguments import check_flag, is_finite
from ..context import is_traced
from ..conv2d import conv2d
from ..generated import GeneratedConv2d
from ..rows import as_rows
from .branches import BRANCHES, KXK, POINTWISE, Branch
from .fast import sum_of_kernels

Branches = Sequence[str] | Mapping[str, float | None] | None


class BranchSum(nn.Module):
    """The k x k and the 1x1 block: the sum of the branches' scaled kernels.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        kernel_size (int): The kernel size, k, odd.
        groups (int): The number of groups, g.
        branches (Sequence[str] | Mapping[str, float | None], optional): See
            :class:`OREPAConv2d`.
        slope (float, optional): See :class:`OREPAConv2d`.
        keep_scales (bool): See :class:`OREPAConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        branches: Branches = None,
        slope: float | None = None,
        keep_scales: bool = False,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.keep_scales = keep_scales
        if slope is None:
            slope = 1.0 if kernel_size == 1 else 0.0
        for name, scale in choose_branches(kernel_size, branches).items():
            branch = BRANCHES[name](
                in_channels,
                out_channels,
                kernel_size,
                groups,
                slope=slope,
                scale=scale,
            )
            self.add_module(name, branch)

    def forward(self) -> Tensor:
        """The kernel, (O, I/g, k, k)."""
        return sum_of_kernels(self)

    def imitate(self, kernel: Tensor) -> None:
        """Set the parameters so that :meth:`forward` gives ``kernel``, (O, I/g, k, k).

        The ``original`` branch gets this kernel and scale one, and the others get scale zero. With
        ``keep_scales``, and where there is no scaling layer, a branch keeps its values, and the
        ``original`` branch makes up the difference.

        Raises:
            UserError: If there is no original branch, or its scale is to be kept and is zero.
        """
        if 'original' not in self._modules:
            raise UserError(
                "keep_function wants the branch 'original', here there are only "
                f'{", ".join(self._modules)}'
            )
        original = self.original
        if not self.keep_scales:
            for branch in self.children():
                if branch.scale is not None:
                    branch.scale.fill_(1.0 if branch is original else 0.0)
        elif original.scale is not None and not original.scale.all():
            raise UserError(
                "keep_scales=True wants a branch 'original' that does not start at scale 0"
            )
        # Without the part of the original branch.
        rest = self() - original()
        rows = as_rows(kernel - rest)
        original.weight.copy_(
            rows if original.scale is None else rows / original.scale[:, None, None]
        )

    def run(self, x: Tensor, stride, padding, dilation, flip: bool = False) -> Tensor:
        """Run the block over a feature map, branch by branch.

        Args:
            x (Tensor): (N, I, H, W).
            stride (tuple[int, int]): As in ``nn.Conv2d``.
            padding (tuple[int, int]): As in ``nn.Conv2d``.
            dilation (tuple[int, int]): As in ``nn.Conv2d``.
            flip (bool): Rotate every k x k weight by 180 degrees. Defaults to False.

        Returns:
            Tensor: (N, O, H', W').
        """
        outputs = []
        for branch in self.children():
            if branch._forward_pre_hooks:
                branch()  # old weight norms and pruning compute the weight in a call
            out = run_branch(branch, x, stride, padding, dilation, flip)
            outputs.append(out if branch.scale is None else out * branch.scale[:, None, None])
        return reduce(torch.add, outputs)


class DeepLinearStem(nn.Sequential):
    """The deep linear stem: (k - 1)/2 blocks of 3x3, composed into one k x k kernel.

    The first block maps I to O channels, the others map O to O.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        kernel_size (int): The kernel size, k, odd, at least 5.
        groups (int): The number of groups, g.
        branches (Sequence[str] | Mapping[str, float | None], optional): See
            :class:`OREPAConv2d`.
        slope (float, optional): See :class:`OREPAConv2d`.
        keep_scales (bool): See :class:`OREPAConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        branches: Branches = None,
        slope: float | None = None,
        keep_scales: bool = False,
    ):
        self.groups = groups
        depth = (kernel_size - 1) // 2
        channels = [in_channels, *[out_channels] * depth]
        super().__init__(
            *[
                BranchSum(
                    channels[i],
                    channels[i + 1],
                    3,
                    groups,
                    branches,
                    slope,
                    keep_scales,
                )
                for i in range(depth)
            ]
        )

    def forward(self) -> Tensor:
        """The kernel, (O, I/g, k, k)."""
        return kernels.compose_chain([layer() for layer in self], self.groups)

    def imitate(self, kernel: Tensor) -> None:
        """Set the parameters so that :meth:`forward` gives ``kernel``, (O, I/g, k, k).

        All layers except the last keep their values. The last one becomes the smallest solution of
        the linear equations that remain.

        Raises:
            UserError: If the equations have no solution, because there are too few channels between
                the layers, or if there is no original branch.
        """
        *firsts, last = self
        solution = kernels.solve_chain([layer() for layer in firsts], kernel, self.groups)
        last.imitate(solution)
        error = (self() - kernel).norm() / kernel.norm().clamp_min(1e-12)
        if not error < 1e-6:
            raise UserError(
                f'a deep linear stem of {len(kernel)} channels cannot have every kernel of shape '
                f'{tuple(kernel.shape)} (the nearest is {error:.0%} away): leave this convolution '
                "plain, for example with where='layer' in a ResNet's reparam"
            )

    def run(self, x: Tensor, stride, padding, dilation) -> Tensor:
        """Run the stem over a feature map, layer by layer and branch by branch.

        Arguments and result are those of :meth:`BranchSum.run`. All padding is done before the
        first layer, so that the borders equal those of the composed kernel. All kernels except the
        first are flipped; :func:`kernels.compose_chain` says why.
        """
        x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
        last = len(self) - 1
        for i, layer in enumerate(self):
            x = layer.run(x, stride if i == last else (1, 1), (0, 0), dilation, flip=i > 0)
        return x


class OREPAConv2d(GeneratedConv2d):
    """A convolution that trains as an OREPA block and convolves the feature map only once.

    It takes the arguments of ``nn.Conv2d``. For those not listed see
    :class:`mmorepa.convs.reparam.ReparamConv2d`. Put one BatchNorm behind it.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        kernel_size (int | tuple[int, int]): The kernel size, k, odd and square. 1 gives the 1x1
            block, 3 and 5 give the k x k block, 7 and larger sizes give the deep linear stem.
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True, as in
            ``nn.Conv2d``. Use False before a BatchNorm.
        branches (Sequence[str] | Mapping[str, float | None], optional): The branches to build, by
            the names of :data:`mmorepa.convs.orepa.branches.BRANCHES`. Names that do not fit the
            kernel size are ignored. A mapping also gives the initial scale of each branch; None
            leaves out its scaling layer. Defaults to all branches with the paper's initial scales.
        slope (float, optional): ``a`` of the ``kaiming_uniform_`` that the parameters start with.
            Defaults to 1 for the 1x1 block and 0 for the others, as in the release.
        keep_scales (bool): How the block starts from a plain convolution's weight. False gives it
            to the ``original`` branch, and the others start at scale zero. True keeps the initial
            scales and values of the others, and the ``original`` branch gets the difference.
            Defaults to False.
        mode (str): ``'online'`` squeezes the branches into one kernel before each convolution, with
            a graph. It is right under any training loop. ``'squeezed'`` makes the kernel a leaf of
            the graph, so that the plain network runs, and updates the branches in the optimizer's
            step, see :class:`mmorepa.SqueezedTraining`. The numbers are the same. ``'offline'``
            runs every branch over the feature map, as in the paper's comparison, with the same
            result at many times the cost. State dicts are the same in all three modes. Defaults to
            ``'online'``.

    Raises:
        UserError: As for :class:`mmorepa.convs.reparam.ReparamConv2d`, and if a branch does not
            exist, no branch fits the kernel size, or an option has a value of another type.

    Example:
        >>> conv = OREPAConv2d(16, 32, 3, stride=2, padding=1, bias=False)
        >>> conv(torch.rand(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
        >>> conv.squeeze().shape
        torch.Size([32, 16, 3, 3])
        >>> type(conv.switch_to_deploy()).__name__
        'Conv2d'
    """

    options = ('branches', 'slope', 'keep_scales', 'mode')
    modes = ('online', 'squeezed', 'offline')

    def add_kernel(
        self,
        branches: Branches = None,
        slope: float | None = None,
        keep_scales: bool = False,
    ) -> None:
        check_flag('OREPAConv2d', keep_scales=keep_scales)
        if slope is not None and not is_finite(slope):
            raise UserError(f'OREPAConv2d: slope={slope!r}, wanted a finite number')
        size = self.kernel_size[0]
        shape = DeepLinearStem if size >= 7 else BranchSum
        self.kernel = shape(
            self.in_channels, self.out_channels, size, self.groups, branches, slope, keep_scales
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        if self.mode != 'offline':
            return super().forward(x)
        self.settle()
        if type(self) is nn.Conv2d:
            return self(x)
        if not is_traced():
            self.gives_gradients()
        out = self.kernel.run(x, self.stride, self.padding, self.dilation)
        return out if self.bias is None else out + self.bias.reshape(-1, 1, 1)


def choose_branches(kernel_size: int, branches: Branches) -> dict[str, float | None]:
    """The branches to build for a kernel size, in the order of the table, with initial scales.

    Args:
        kernel_size (int): The kernel size, k.
        branches (Sequence[str] | Mapping[str, float | None], optional): The user's choice. Defaults
            to the paper's branches.

    Returns:
        dict[str, float | None]: The initial scale of each branch by name, None for no scaling
        layer. A branch that is not the paper's starts at scale 1, unless a mapping gives another.

    Raises:
        UserError: If a name does not exist or is there twice, a scale is no finite number, or no
            branch fits the kernel size.
    """
    scales = POINTWISE if kernel_size == 1 else KXK
    if branches is None:
        return dict(scales)
    if isinstance(branches, str):
        branches = (branches,)
    if not isinstance(branches, Collection):
        raise UserError(f'OREPAConv2d: branches={branches!r}, wanted names of branches')
    unknown = [name for name in branches if name not in BRANCHES]
    if unknown:
        raise UserError(
            f'OREPAConv2d: no branch is named {unknown[0]!r}; the names are {", ".join(BRANCHES)}'
        )
    if len(set(branches)) < len(branches):
        raise UserError(f'OREPAConv2d: a branch is named twice in {list(branches)}')
    given = branches.items() if isinstance(branches, Mapping) else ()
    for name, scale in given:
        if scale is not None and not is_finite(scale):
            raise UserError(
                f'OREPAConv2d: branch {name!r} has the scale {scale!r}: wanted a finite number, or '
                'None for no scaling layer'
            )
    fitting = [name for name, branch in BRANCHES.items() if branch.fits(kernel_size)]
    scales = branches if isinstance(branches, Mapping) else scales
    chosen = {name: scales.get(name, 1.0) for name in fitting if name in branches}
    if not chosen:
        raise UserError(
            f'OREPAConv2d: none of the branches {", ".join(branches) or "()"} belongs to this '
            f'kernel size; it has {", ".join(fitting)}'
        )
    return chosen


def run_branch(branch: Branch, x: Tensor, stride, padding, dilation, flip: bool) -> Tensor:
    """Run one branch over a feature map, without its scale.

    The other arguments are those of :meth:`BranchSum.run`.
    """
    reach = branch.kernel_size // 2
    # int(), because for torch.jit.trace a comparison of lengths is a tensor.
    is_spatial = [int(weight.shape[-1]) == branch.kernel_size for weight, _ in branch.factors()]
    if not any(is_spatial):
        # Use the centre of the k x k window. This crops if the padding is smaller than the window.
        h, w = (p - d * reach for p, d in zip(padding, dilation))
        x = F.pad(x, [w, w, h, h])
        padding = (0, 0)
    spatial_at = is_spatial.index(True) if any(is_spatial) else 0
    for i, (weight, groups) in enumerate(branch.factors()):
        if i == spatial_at:
            weight = weight.flip(2, 3) if flip else weight
            x = conv2d(x, weight, None, stride, padding, dilation, groups)
        else:
            x = F.conv2d(x, weight, groups=groups)
    return x
