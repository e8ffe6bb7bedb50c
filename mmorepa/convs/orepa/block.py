"""OREPAConv2d: a convolution whose weight is generated (paper, sec. 3.2 and 3.3).

An OREPA block has a single BatchNorm, after the squeezed convolution. So the block without its
BatchNorm is a convolution, and stands wherever an ``nn.Conv2d`` stands. Its kernel comes from one
of three shapes, chosen by the kernel size: the 1x1 block, the k x k block (3 <= k < 7), and the
deep linear stem (k >= 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .. import kernels
from ..context import is_traced
from ..conv2d import conv2d
from ..generated import GeneratedConv2d
from ..rows import as_rows
from .branches import BRANCHES, KXK, POINTWISE, Branch
from .fast import sum_of_kernels

Branches = Sequence[str] | Mapping[str, float | None] | None


class BranchSum(nn.Module):
    """The k x k and the 1x1 block: the sum of its branches' scaled kernels.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k, odd.
        groups (int): g.
        branches (Sequence[str] | Mapping[str, float | None], optional): See
            :class:`OREPAConv2d`.
        slope (float, optional): See :class:`OREPAConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        branches: Branches = None,
        slope: float | None = None,
    ):
        super().__init__()
        self.kernel_size = kernel_size
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

        The ``original`` branch takes it at scale one and the others start at scale zero; a branch
        without a scaling layer keeps its values, and the original one makes up for them.

        Raises:
            UserError: If there is no original branch.
        """
        if 'original' not in self._modules:
            raise UserError(
                "keep_function wants the branch 'original', here there are only "
                f'{", ".join(self._modules)}'
            )
        for name, branch in self.named_children():
            if branch.scale is not None:
                branch.scale.fill_(1.0 if name == 'original' else 0.0)
            elif name != 'original':
                kernel = kernel - branch()
        self.original.weight.copy_(as_rows(kernel))

    def run(self, x: Tensor, stride, padding, dilation, flip: bool = False) -> Tensor:
        """The block over a feature map, branch by branch.

        Args:
            x (Tensor): (N, I, H, W).
            stride (tuple[int, int]): As in ``nn.Conv2d``, like the next two.
            padding (tuple[int, int]): See above.
            dilation (tuple[int, int]): See above.
            flip (bool): Turn every k x k weight by 180 degrees.

        Returns:
            Tensor: (N, O, H', W').
        """
        outputs = []
        for branch in self.children():
            if branch._forward_pre_hooks:
                branch()  # old weight norms, and pruning, make the weight anew in a call
            out = run_branch(branch, x, stride, padding, dilation, flip)
            outputs.append(out if branch.scale is None else out * branch.scale[:, None, None])
        return reduce(torch.add, outputs)


class DeepLinearStem(nn.Sequential):
    """The deep linear stem: (k - 1)/2 blocks of 3x3, composed into one k x k kernel.

    The first maps I to O channels, the others O to O.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k, odd, at least 5.
        groups (int): g.
        branches (Sequence[str] | Mapping[str, float | None], optional): See
            :class:`OREPAConv2d`.
        slope (float, optional): See :class:`OREPAConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        branches: Branches = None,
        slope: float | None = None,
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
                )
                for i in range(depth)
            ]
        )

    def forward(self) -> Tensor:
        """The kernel, (O, I/g, k, k)."""
        return kernels.compose_chain([layer() for layer in self], self.groups)

    def imitate(self, kernel: Tensor) -> None:
        """Set the parameters so that :meth:`forward` gives ``kernel``, (O, I/g, k, k).

        All layers but the last keep their values; the last one is the least solution of the
        linear equations that are left.

        Raises:
            UserError: If these have no solution, because the channels between the layers are too
                few, or there is no original branch.
        """
        *firsts, last = self
        solution = kernels.solve_chain([layer() for layer in firsts], kernel, self.groups)
        last.imitate(solution)
        error = (self() - kernel).norm() / kernel.norm().clamp_min(1e-12)
        if not error < 1e-6:
            raise UserError(
                f'a deep linear stem of {len(kernel)} channels cannot have every kernel of shape '
                f'{tuple(kernel.shape)} (the nearest is {error:.0%} away): leave this convolution '
                'plain where its function is to be kept'
            )

    def run(self, x: Tensor, stride, padding, dilation) -> Tensor:
        """The stem over a feature map, layer by layer and branch by branch.

        Arguments and result as in :meth:`BranchSum.run`. All padding is done before the first
        layer, so that borders equal those of the composed kernel; all but the first kernel are
        flipped, for the reason in :func:`kernels.compose_chain`.
        """
        x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
        last = len(self) - 1
        for i, layer in enumerate(self):
            x = layer.run(x, stride if i == last else (1, 1), (0, 0), dilation, flip=i > 0)
        return x


class OREPAConv2d(GeneratedConv2d):
    """A convolution that trains as an OREPA block and costs a plain one over the feature map.

    It takes the arguments of ``nn.Conv2d``; for those not listed see
    :class:`mmorepa.convs.reparam.ReparamConv2d`. Put one BatchNorm behind it.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int | tuple[int, int]): k, odd and square. 1: the 1x1 block; 3 and 5: the
            k x k block; from 7 on: the deep linear stem.
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True, as
            ``nn.Conv2d`` does; leave it out before a BatchNorm.
        branches (Sequence[str] | Mapping[str, float | None], optional): Which branches to build,
            by the names of :data:`mmorepa.convs.orepa.branches.BRANCHES`; of these a block takes
            the ones of its shape. A mapping gives the initial scale of each as well, None meaning
            no scaling layer. All with the paper's initial scales by default.
        slope (float, optional): ``a`` of the ``kaiming_uniform_`` that the parameters start with.
            Defaults to 1 for the 1x1 block and 0 for the others, as in the release.
        mode (str): ``'online'`` squeezes the branches into one kernel before each convolution, with
            a graph: right under any training loop. ``'squeezed'`` trains on the kernel as a leaf,
            and leaves the branches to the optimizer's step, see :class:`mmorepa.SqueezedTraining`:
            same numbers, and the network that runs is the plain one. ``'offline'`` runs every
            branch over the feature map, the paper's comparison: same result, many times the cost.
            State dicts are the same in all three. Defaults to ``'online'``.

    Raises:
        UserError: As :class:`mmorepa.convs.reparam.ReparamConv2d` has it, and for branches that do
            not exist or leave nothing.

    Example:
        >>> conv = OREPAConv2d(16, 32, 3, stride=2, padding=1, bias=False)
        >>> conv(torch.rand(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
        >>> conv.squeeze().shape
        torch.Size([32, 16, 3, 3])
        >>> type(conv.switch_to_deploy()).__name__
        'Conv2d'
    """

    options = ('branches', 'slope', 'mode')
    modes = ('online', 'squeezed', 'offline')

    def add_kernel(self, branches: Branches = None, slope: float | None = None) -> None:
        size = self.kernel_size[0]
        shape = DeepLinearStem if size >= 7 else BranchSum
        self.kernel = shape(self.in_channels, self.out_channels, size, self.groups, branches, slope)

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
        kernel_size (int): k.
        branches (Sequence[str] | Mapping[str, float | None], optional): The user's choice. By
            default the paper's.

    Returns:
        dict[str, float | None]: Initial scale by name; None for no scaling layer. A branch that is
        not the paper's starts at scale 1, unless the choice gives another.

    Raises:
        UserError: If a name does not exist, or no branch fits the kernel size.
    """
    scales = POINTWISE if kernel_size == 1 else KXK
    if branches is None:
        return dict(scales)
    if isinstance(branches, str):
        branches = (branches,)
    unknown = [name for name in branches if name not in BRANCHES]
    if unknown:
        raise UserError(
            f'OREPAConv2d: no branch is named {unknown[0]!r}; the names are {", ".join(BRANCHES)}'
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
    """One branch over a feature map, without its scale; arguments as in :meth:`BranchSum.run`."""
    reach = branch.kernel_size // 2
    # As a number: to torch.jit.trace a comparison of lengths is a tensor.
    is_spatial = [int(weight.shape[-1]) == branch.kernel_size for weight, _ in branch.factors()]
    if not any(is_spatial):
        # The centre of the k x k window: a crop where the padding is smaller than the window.
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
