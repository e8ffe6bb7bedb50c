"""OREPAConv2d: a convolution whose weight is generated (paper, sec. 3.2 and 3.3).

An OREPA block has a single BatchNorm, after the squeezed convolution. So the block without its
BatchNorm is a convolution, and stands wherever an ``nn.Conv2d`` stands. Its kernel comes from one
of three shapes, chosen by the kernel size: the 1x1 block, the k x k block (3 <= k < 7), and the
deep linear stem (k >= 7).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from . import kernels
from .branches import BRANCHES, KXK, POINTWISE, Branch
from .kept import KeptKernel

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
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        branches: Branches = None,
    ):
        super().__init__()
        is_pointwise = kernel_size == 1
        scales = choose_branches(POINTWISE if is_pointwise else KXK, branches)
        for name, scale in scales.items():
            branch = BRANCHES[name](
                in_channels,
                out_channels,
                kernel_size,
                groups,
                slope=1.0 if is_pointwise else 0.0,
                scale=scale,
            )
            self.add_module(name, branch)

    def forward(self) -> Tensor:
        """The kernel, (O, I/g, k, k)."""
        return reduce(torch.add, [branch.kernel() for branch in self.children()])

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
            out = run_branch(branch, x, stride, padding, dilation, flip)
            outputs.append(branch.scaled(out.transpose(0, 1)).transpose(0, 1))
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
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int,
        branches: Branches = None,
    ):
        self.groups = groups
        depth = (kernel_size - 1) // 2
        channels = [in_channels, *[out_channels] * depth]
        super().__init__(
            *[BranchSum(channels[i], channels[i + 1], 3, groups, branches) for i in range(depth)]
        )

    def forward(self) -> Tensor:
        """The kernel, (O, I/g, k, k)."""
        return kernels.compose_chain([layer() for layer in self], self.groups)

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


class OREPAConv2d(nn.Module):
    """A convolution that trains as an OREPA block and costs a plain one over the feature map.

    It takes the arguments of ``nn.Conv2d`` and has the attributes that code reads on one;
    ``weight`` is the generated kernel, read-only. Put one BatchNorm behind it.

    In eval mode where no gradient is wanted, and where all its parameters are frozen, the kernel
    is kept until a parameter changes, so that it costs what an ``nn.Conv2d`` costs. Kernels are
    generated in float32 at least, under autocast and for half-precision parameters too.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int | tuple[int, int]): k, odd and square. 1: the 1x1 block; 3 and 5: the
            k x k block; from 7 on: the deep linear stem.
        stride (int | tuple[int, int]): Defaults to 1.
        padding (int | tuple[int, int] | str): Zeros around the input; ``'same'`` stands for
            ``dilation * (k // 2)``, ``'valid'`` for 0. Defaults to 0.
        dilation (int | tuple[int, int]): Defaults to 1.
        groups (int): g. Defaults to 1.
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True, as
            ``nn.Conv2d`` does; leave it out before a BatchNorm.
        padding_mode (str): Only ``'zeros'``.
        branches (Sequence[str] | Mapping[str, float | None], optional): Which branches to build,
            by the names of :data:`mmorepa.convs.branches.BRANCHES`; of these a block takes the
            ones of its shape. A mapping gives the initial scale of each as well, None meaning no
            scaling layer. All with the paper's initial scales by default.
        online (bool): True squeezes the branches into one kernel before the convolution. False
            runs every branch over the feature map, the paper's offline comparison: same result,
            many times the cost. Defaults to True.

    Raises:
        UserError: If the kernel is even or not square, if channels and groups do not divide, for
            another padding mode, and for branches that do not exist or leave nothing.

    Example:
        >>> conv = OREPAConv2d(16, 32, 3, stride=2, padding=1, bias=False)
        >>> conv(torch.rand(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
        >>> conv.squeeze().shape
        torch.Size([32, 16, 3, 3])
        >>> type(conv.switch_to_deploy()).__name__
        'Conv2d'
    """

    transposed = False
    output_padding = (0, 0)
    padding_mode = 'zeros'

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        *,
        branches: Branches = None,
        online: bool = True,
    ):
        super().__init__()
        size = square_odd(kernel_size)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(
                f'OREPAConv2d: in_channels={in_channels} and out_channels={out_channels} '
                f'must both be multiples of groups={groups}'
            )
        if padding_mode != 'zeros':
            raise UserError(
                f"OREPAConv2d: padding_mode={padding_mode!r} is not supported, only 'zeros'; "
                'pad before the convolution instead'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (size, size)
        self.stride = pair(stride)
        self.dilation = pair(dilation)
        self.padding = self._padding(padding)
        self.groups = groups
        self.online = online

        shape = DeepLinearStem if size >= 7 else BranchSum
        self.kernel = shape(in_channels, out_channels, size, groups, branches)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels))
        else:
            self.register_parameter('bias', None)
        self._kept = KeptKernel()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **kwargs) -> OREPAConv2d:
        """A block of the same geometry as ``conv``, freshly initialised.

        Args:
            conv (nn.Conv2d): The convolution whose place it takes.
            kwargs: ``branches`` and ``online`` of the constructor.
        """
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            **kwargs,
        ).to(conv.weight.device, conv.weight.dtype)

    def _padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int]:
        if padding == 'same':
            if self.stride != (1, 1):
                raise UserError(f"OREPAConv2d: padding='same' wants stride 1, not {self.stride}")
            return tuple(d * (self.kernel_size[0] // 2) for d in self.dilation)
        return pair(0 if padding == 'valid' else padding)

    def squeeze(self) -> Tensor:
        """Squeeze the branches into one kernel (paper, sec. 3.2, "block squeezing").

        Returns:
            Tensor: (O, I/g, k, k), float32 or float64, with a graph back to the parameters where
            gradients are on.
        """
        sample = next(self.kernel.parameters())
        with torch.autocast(sample.device.type, enabled=False):
            if sample.dtype in (torch.float16, torch.bfloat16):
                tensors = dict(self.kernel.named_parameters()) | dict(self.kernel.named_buffers())
                wide = {name: tensor.float() for name, tensor in tensors.items()}
                return torch.func.functional_call(self.kernel, wide, ())
            return self.kernel()

    @property
    def weight(self) -> Tensor:
        """The generated kernel, (O, I/g, k, k), in the parameters' dtype. Read-only."""
        parameters = list(self.kernel.parameters())
        frozen = not any(p.requires_grad for p in parameters)
        wants_graph = torch.is_grad_enabled() and not frozen
        if wants_graph or (self.training and not frozen) or torch.compiler.is_compiling():
            return self.squeeze().to(parameters[0].dtype)
        return self._kept.get(parameters, lambda: self.squeeze().to(parameters[0].dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        if self.online:
            return self._conv_forward(x, self.weight, self.bias)
        out = self.kernel.run(x, self.stride, self.padding, self.dilation)
        return out if self.bias is None else out + self.bias.reshape(-1, 1, 1)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The name is nn.Conv2d's: mmcv's and MMEngine's conv-BN evaluation call it.
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def switch_to_deploy(self, norm: _BatchNorm | None = None) -> nn.Conv2d:
        """Become the plain ``nn.Conv2d`` that this block amounts to, in place.

        Everything is computed in float64 and stored in the parameters' dtype. The object turns
        into an ``nn.Conv2d`` itself, so that whoever holds it, be it several parents that share
        it, holds the plain convolution from then on.

        Args:
            norm (_BatchNorm, optional): A BatchNorm behind the block, to be folded in.

        Returns:
            nn.Conv2d: This very object.
        """
        parameters = list(self.kernel.parameters())
        trainable = any(p.requires_grad for p in parameters)
        kernel, bias = copy.deepcopy(self.kernel).double()(), self.bias
        if norm is not None:
            kernel, bias = kernels.fold_batch_norm(kernel, bias, norm)
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=bias is not None,
            device='meta',
        )
        plain.weight = nn.Parameter(kernel.to(parameters[0].dtype).contiguous(), trainable)
        if bias is not None:
            plain.bias = nn.Parameter(bias.to(parameters[0].dtype), trainable)
        state = self.__dict__
        del state['_kept'], state['online'], state['_modules']['kernel']
        state['_parameters'] = plain._parameters
        for name, value in plain.__dict__.items():
            state.setdefault(name, value)
        self.__class__ = nn.Conv2d
        return self

    def init_weights(self) -> None:
        """Do nothing: the constructor has set the initial values.

        Without this method mmcv's ``ConvModule`` would initialise the generated kernel.
        """

    def train(self, mode: bool = True) -> OREPAConv2d:
        # Values written through `.data` leave no trace (MMEngine's EMA swap does it); whoever
        # does so goes through train() or eval() next.
        self._kept.drop()
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> OREPAConv2d:
        self._kept.drop()
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        text = f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}'
        text += f', stride={self.stride}, padding={self.padding}'
        if self.dilation != (1, 1):
            text += f', dilation={self.dilation}'
        if self.groups != 1:
            text += f', groups={self.groups}'
        if self.bias is None:
            text += ', bias=False'
        return text if self.online else text + ', online=False'


@contextlib.contextmanager
def keeping_kernels(model: nn.Module) -> Iterator[None]:
    """Let ``model.train()`` and ``model.eval()`` drop no kernel that a block has kept.

    For who knows that nothing was written through ``.data`` since.
    """
    blocks = [module for module in model.modules() if isinstance(module, OREPAConv2d)]
    kept = [block._kept for block in blocks]
    for block in blocks:
        block._kept = KeptKernel()
    try:
        yield
    finally:
        for block, kernel in zip(blocks, kept):
            block._kept = kernel


def choose_branches(shape: Mapping[str, float], branches: Branches) -> dict[str, float | None]:
    """The branches to build for one shape, in its own order, with their initial scales.

    Args:
        shape (Mapping[str, float]): All branches of the shape and their default scales.
        branches (Sequence[str] | Mapping[str, float | None], optional): The user's choice.

    Returns:
        dict[str, float | None]: Initial scale by name; None for no scaling layer.

    Raises:
        UserError: If a name does not exist, or none belongs to this shape.
    """
    if branches is None:
        return dict(shape)
    if isinstance(branches, str):
        branches = (branches,)
    unknown = [name for name in branches if name not in BRANCHES]
    if unknown:
        raise UserError(
            f'OREPAConv2d: no branch is named {unknown[0]!r}; the names are {", ".join(BRANCHES)}'
        )
    scales = branches if isinstance(branches, Mapping) else shape
    chosen = {name: scales[name] for name in shape if name in branches}
    if not chosen:
        raise UserError(
            f'OREPAConv2d: none of the branches {", ".join(branches) or "()"} belongs to this '
            f'kernel size; it has {", ".join(shape)}'
        )
    return chosen


def run_branch(branch: Branch, x: Tensor, stride, padding, dilation, flip: bool) -> Tensor:
    """One branch over a feature map, without its scale; arguments as in :meth:`BranchSum.run`."""
    reach = branch.kernel_size // 2
    is_spatial = [weight.shape[-1] == branch.kernel_size for weight, _ in branch.factors()]
    if not any(is_spatial):
        # The centre of the k x k window: a crop where the padding is smaller than the window.
        h, w = (p - d * reach for p, d in zip(padding, dilation))
        x = F.pad(x, [w, w, h, h])
        padding = (0, 0)
    spatial_at = is_spatial.index(True) if any(is_spatial) else 0
    for i, (weight, groups) in enumerate(branch.factors()):
        if i == spatial_at:
            weight = weight.flip(2, 3) if flip else weight
            x = F.conv2d(x, weight, None, stride, padding, dilation, groups)
        else:
            x = F.conv2d(x, weight, groups=groups)
    return x


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """``value`` for height and width."""
    return (value, value) if isinstance(value, int) else tuple(value)


def square_odd(kernel_size: int | Sequence[int]) -> int:
    """The one side of an odd, square kernel.

    Raises:
        UserError: If the kernel is something else.
    """
    height, width = pair(kernel_size)
    if height != width or height % 2 == 0 or height < 1:
        raise UserError(
            f'OREPAConv2d: kernel_size={kernel_size} is not odd and square; '
            'use nn.Conv2d for this layer'
        )
    return height
