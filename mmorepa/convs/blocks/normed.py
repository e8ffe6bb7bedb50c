"""Blocks whose branches each end in a BatchNorm, and these branches.

Such a block replaces a convolution *and* the BatchNorm behind it. In training every branch runs
over the feature map. In eval mode the block is equivalent to one convolution with a bias.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from .. import kernels
from ..arguments import check_flag
from ..batch_norm import norm_alone
from ..constants import ConstantsMixin
from ..conv2d import conv2d
from ..orepa.block import OREPAConv2d
from ..reparam import ReparamConv2d, geometry

#: A function that makes a norm for a number of channels.
MakeNorm = Callable[[int], nn.Module]


class NormedConv2d(ReparamConv2d):
    """The sum of its branches, which are its children. Subclasses add the branches.

    ``weight`` and ``bias`` are those of the single convolution that is equivalent to its eval mode.

    Args:
        norm (Callable, optional): Makes a branch's BatchNorm from its number of channels. None
            leaves the BatchNorms out. Then put one behind the block, as behind a convolution. This
            is "without branch-wise norm" in the OREPA paper, table 1.
        options: Options of the block.

    For the other arguments see :class:`mmorepa.convs.reparam.ReparamConv2d`.
    """

    options = ('branch_norm',)
    computed = ('weight', 'bias')

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = 'zeros',
        *,
        norm: MakeNorm | None = nn.BatchNorm2d,
        **options,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        self.takes_norm = norm is not None
        # A plain convolution that was loaded, until the BatchNorm behind it is loaded too. It is in
        # a tuple so that it does not become a child.
        self._loaded: tuple[nn.Conv2d, ...] = ()
        self.add_branches(norm, **options)

    @property
    def weight(self) -> Tensor:
        """The kernel, (O, I/g, k, k); see :class:`mmorepa.convs.reparam.ReparamConv2d`."""
        self.settle()
        if type(self) is nn.Conv2d:
            return self._parameters['weight']
        return self.hand_out(self.merged()[0].to(next(self.parameters()).dtype))

    @property
    def bias(self) -> Tensor | None:
        """The bias that belongs to :attr:`weight`, (O,); None without BatchNorms inside."""
        self.settle()
        if type(self) is nn.Conv2d:
            return self._parameters['bias']
        bias = self.merged()[1]
        return bias if bias is None else bias.to(next(self.parameters()).dtype)

    def add_branches(self, norm: MakeNorm | None, **options) -> None:
        """Add the branches as children. The first must be the plain convolution."""
        raise NotImplementedError

    @classmethod
    def misfit(
        cls,
        conv: nn.Conv2d,
        norm: _BatchNorm | None = None,
        branch_norm: bool = True,
        **options,
    ) -> str:
        """See :meth:`mmorepa.convs.reparam.ReparamConv2d.misfit`.

        There must be a BatchNorm to take in, affine and with running statistics. If ``branch_norm``
        is False, the convolution must have no bias.
        """
        if not branch_norm:
            reason = '' if conv.bias is None else 'a bias, and branch_norm=False'
        elif norm is None:
            reason = 'no BatchNorm right behind it'
        elif not (norm.affine and norm.track_running_stats):
            reason = 'a BatchNorm without weight, bias or running statistics behind it'
        else:
            reason = ''
        return reason or super().misfit(conv)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        norm: _BatchNorm | None = None,
        branch_norm: bool = True,
        **options,
    ):
        """See :meth:`mmorepa.convs.reparam.ReparamConv2d.from_conv`.

        Args:
            conv (nn.Conv2d): The convolution to replace.
            norm (_BatchNorm, optional): The BatchNorm behind ``conv``.
            branch_norm (bool): False leaves the BatchNorms out. Defaults to True.
            options: Options of the block.
        """
        check_flag(cls.__name__, branch_norm=branch_norm)
        make = like(norm) if branch_norm else None
        return cls(**geometry(conv), norm=make, **options).to(conv.weight.device, conv.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise: (N, I, H, W) to (N, O, H', W')."""
        if not torch.compiler.is_dynamo_compiling():  # which cannot compare addresses of tensors
            self.settle()
        if type(self) is nn.Conv2d:  # a tool has written to its weight; its hooks have run
            return nn.Conv2d.forward(self, x)
        self._refuse_half_loaded()
        return reduce(torch.add, [branch(x) for branch in self.children()])

    def merged(self) -> tuple[Tensor, Tensor | None]:
        self._refuse_half_loaded()
        parts = [branch.merged() for branch in self.children()]
        biases = [bias for _, bias in parts if bias is not None]
        return (
            reduce(torch.add, [kernel for kernel, _ in parts]),
            reduce(torch.add, biases) if biases else None,
        )

    @torch.no_grad()
    def imitate(self, conv: nn.Conv2d, norm: _BatchNorm | None = None) -> None:
        """Set the parameters so that the block computes what ``conv`` and ``norm`` compute.

        This holds in training mode too. The first branch takes over their values, and the
        BatchNorms at the end of the other branches start at zero. Without BatchNorms the other
        branches keep their values, and their kernels are subtracted from that of the first.
        """
        first, *others = self.children()
        if not self.takes_norm:
            kernel = conv.weight.double()
            for branch in others:
                kernel = kernel - branch.merged()[0]
            first.imitate(kernel)
            return
        if any(not branch.norm.weight.requires_grad for branch in others):
            warnings.warn(
                'a block starts from a plain convolution with frozen BatchNorms: all branches but '
                'one start at zero and stay there, so that it trains as a plain convolution; let '
                'the BatchNorms train, or give the block branch_norm=False',
                stacklevel=2,
            )
        for branch in others:
            branch.norm.weight.zero_()
            branch.norm.bias.zero_()
        first.imitate(conv.weight.double())
        first.norm.load_state_dict(norm.state_dict(), strict=not norm._modules)
        if conv.bias is not None:
            first.norm.running_mean -= conv.bias

    def start_from(self, weight: Tensor, bias: Tensor | None) -> None:
        """See :meth:`mmorepa.convs.reparam.ReparamConv2d.start_from`.

        A block with BatchNorms inside waits until the BatchNorm behind it is loaded.
        """
        if self.takes_norm:
            self._loaded = (self.plain(weight, bias),)
        else:
            super().start_from(weight, bias)

    def _refuse_half_loaded(self) -> None:
        if self._loaded:
            raise UserError(
                f'{self}: a plain convolution was loaded without the BatchNorm behind it, which '
                'this block takes in: load both at once'
            )

    def take_loaded(self, absorbed: AbsorbedNorm, tensors: dict[str, Tensor], prefix: str) -> None:
        """Imitate the plain convolution that was loaded, together with the BatchNorm behind it.

        Args:
            absorbed (AbsorbedNorm): The module behind the block.
            tensors (dict[str, Tensor]): The tensors of the BatchNorm by name.
            prefix (str): The BatchNorm's name in the state dict, for messages.

        Raises:
            UserError: If tensors are missing, as in a deploy form.
        """
        (conv,), self._loaded = self._loaded, ()
        norm = absorbed.restored()
        own = [name for name in norm.state_dict() if '.' not in name]
        missing = [n for n in own if n not in tensors and n != 'num_batches_tracked']
        if missing:
            self.refuse_folded(f'no {prefix}{missing[0]}')
        norm.load_state_dict(tensors, strict=False)
        self.imitate(conv, norm.to(conv.weight.device))

    @torch.no_grad()
    def split(self, absorbed: AbsorbedNorm) -> _BatchNorm:
        """Become a convolution without bias, and return the BatchNorm that belongs behind it.

        In eval mode the two together are equivalent to this block. The running mean is exact,
        because the means of the branches' outputs are known. The running variance is an estimate,
        because the variances of the branches are added up as if these were independent. Training
        can go on from there.

        Args:
            absorbed (AbsorbedNorm): The module behind the block.

        Returns:
            _BatchNorm: The BatchNorm that belongs behind the convolution.
        """
        kernel, bias = copy.deepcopy(self).double().merged()
        last = [branch.norm for branch in self.children()]
        mean = sum(norm.bias.double() for norm in last)
        variance = sum(norm.weight.double() ** 2 for norm in last)
        norm = absorbed.restored().to(last[0].weight)
        norm.train(self.training)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        norm.running_mean.copy_(mean - bias)
        norm.running_var.copy_(variance)
        self.become_conv(kernel, None)
        return norm


class AbsorbedNorm(nn.Identity):
    """Replaces a BatchNorm that the block in front of it has taken in.

    To a tool that folds BatchNorms by their tensors, it is a BatchNorm that changes nothing. What
    the BatchNorm had inside, such as an activation, it still does.

    Args:
        norm (_BatchNorm): The BatchNorm that was here.
        block (NormedConv2d): The block in front of it.
    """

    eps = 0.0

    def __init__(self, norm: _BatchNorm, block: NormedConv2d):
        super().__init__()
        self.num_features = norm.num_features
        for name, child in norm.named_children():
            self.add_module(name, child)
        bare = copy.deepcopy(norm)
        bare._modules.clear()
        # In tuples, so that they do not become children of this module.
        self._norm = (bare,)
        self._block = (block,)

    def forward(self, x: Tensor) -> Tensor:
        """What the BatchNorm had inside: (N, O, H, W) to (N, O, H, W)."""
        return reduce(lambda x, child: child(x), self.children(), x)

    @property
    def weight(self) -> Tensor:
        """Ones, (O,)."""
        return next(self.block.parameters()).detach().new_ones(self.num_features)

    @property
    def bias(self) -> Tensor:
        """Zeros, (O,)."""
        return torch.zeros_like(self.weight)

    running_var, running_mean = weight, bias

    def _load_from_state_dict(self, state_dict, prefix: str, *args) -> None:
        block = self.block
        if isinstance(block, NormedConv2d) and block._loaded:
            names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
            own = [name for name in names if '.' not in name]
            tensors = {name: state_dict.pop(f'{prefix}{name}') for name in own}
            block.take_loaded(self, tensors, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def block(self) -> NormedConv2d:
        """The block that has taken the BatchNorm in."""
        return self._block[0]

    def restored(self) -> _BatchNorm:
        """A fresh BatchNorm of the kind that was here, with what it had inside."""
        # The one that is kept stays where it was when the block took it in, perhaps on meta.
        norm = copy.deepcopy(self._norm[0])
        norm.to_empty(device=next(self.block.parameters()).device)
        norm.reset_parameters()
        for name, child in self.named_children():
            norm.add_module(name, child)
        return norm


class NormedBranch(nn.Module):
    """A branch of such a block, with ``norm`` at its end.

    Args:
        block (ReparamConv2d): The block, whose geometry the branch has. It is not stored.
        norm (Callable, optional): Makes a BatchNorm, see :class:`NormedConv2d`.
    """

    def __init__(self, block: ReparamConv2d, norm: MakeNorm | None):
        super().__init__()
        self.in_channels = block.in_channels
        self.out_channels = block.out_channels
        self.kernel_size = block.kernel_size[0]
        self.stride = block.stride
        self.padding = block.padding
        self.dilation = block.dilation
        self.groups = block.groups
        self.norm = norm(self.out_channels) if norm else nn.Identity()

    def reset_parameters(self) -> None:
        """Give the branch's own parameters, not those of child modules, new initial values."""

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The equivalent kernel and bias, see :meth:`ReparamConv2d.merged`."""
        raise NotImplementedError


class ConvBranch(NormedBranch):
    """A convolution, then a norm.

    Args:
        size (tuple[int, int], optional): Height and width of the kernel, both odd and at most k.
            Defaults to k x k.
        args: Arguments of :class:`NormedBranch`.
    """

    def __init__(self, *args, size: tuple[int, int] | None = None):
        super().__init__(*args)
        self.size = size or (self.kernel_size, self.kernel_size)
        # The rest of the padding of k x k; a negative number means cropping.
        self.margin = tuple(
            p - d * (self.kernel_size // 2 - side // 2)
            for p, d, side in zip(self.padding, self.dilation, self.size)
        )
        self._add_convolution()

    def _add_convolution(self) -> None:
        self.weight = new_weight(self.out_channels, self.in_channels // self.groups, *self.size)

    def reset_parameters(self) -> None:
        reset_weight(self.weight)

    def kernel(self) -> Tensor:
        """The convolution's weight, (O, I/g, height, width)."""
        return self.weight

    def imitate(self, kernel: Tensor) -> None:
        """Set the convolution's weight; (O, I/g, k, k)."""
        self.weight.copy_(kernel)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.margin
        if min(padding) < 0:
            x, padding = F.pad(x, [padding[1]] * 2 + [padding[0]] * 2), (0, 0)
        x = conv2d(x, self.kernel(), None, self.stride, padding, self.dilation, self.groups)
        return self.norm(x)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        return fold(kernels.centre(self.kernel(), self.kernel_size), None, self.norm)


class OREPABranch(ConvBranch):
    """A convolution that trains as an OREPA block, then a norm.

    Args:
        options: Options of :class:`mmorepa.OREPAConv2d`.
        args: Arguments of :class:`NormedBranch`.
    """

    def __init__(self, *args, **options):
        self.options = options
        super().__init__(*args)

    def _add_convolution(self) -> None:
        self.conv = OREPAConv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=False,
            **self.options,
        )

    def reset_parameters(self) -> None:
        """Do nothing, because the block inside has its own ``reset_parameters``."""

    def kernel(self) -> Tensor:
        return self.conv.weight

    def imitate(self, kernel: Tensor) -> None:
        self.conv.imitate_kernel(kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class IdentityBranch(ConstantsMixin, NormedBranch):
    """Only a norm. It is for blocks that keep the shape of their input, see :func:`keeps_shape`."""

    def __init__(self, block: ReparamConv2d, norm: MakeNorm | None):
        super().__init__(block, norm)
        self.register_constants(torch.empty(0))

    def constants(self) -> dict[str, Tensor]:
        return dict(kernel=new_identity(self))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        return fold(kernels.centre(self.kernel, self.kernel_size), None, self.norm)


class AverageBranch(ConstantsMixin, NormedBranch):
    """A 1x1 convolution and a norm, then an average over k x k and a norm.

    A depthwise block has only the average and the norm behind it.
    """

    def __init__(self, block: ReparamConv2d, norm: MakeNorm | None):
        super().__init__(block, norm)
        self.is_depthwise = block.is_depthwise
        self.register_constants(torch.empty(0))
        if not self.is_depthwise:
            self.weight = new_weight(self.out_channels, self.in_channels // self.groups, 1, 1)
            self.inner_norm = norm(self.out_channels) if norm else nn.Identity()

    def reset_parameters(self) -> None:
        if not self.is_depthwise:
            reset_weight(self.weight)

    def constants(self) -> dict[str, Tensor]:
        # Ones and not 1/k^2, because ones are exact in every dtype.
        return dict(ones=torch.ones(1, 1, self.kernel_size, self.kernel_size, device='cpu'))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_depthwise:
            x = F.pad(x, [self.padding[1]] * 2 + [self.padding[0]] * 2)
        else:
            x = F.conv2d(x, self.weight, groups=self.groups)
            x = normed_and_padded(self.inner_norm, x, self.padding)
        if self.dilation == (1, 1):
            x = F.avg_pool2d(x, self.kernel_size, self.stride)
        else:
            box = self.box().expand(self.out_channels, -1, -1, -1)
            x = F.conv2d(x, box, None, self.stride, 0, self.dilation, self.out_channels)
        return self.norm(x)

    def box(self) -> Tensor:
        """The average as a kernel, (1, 1, k, k)."""
        return self.ones / self.kernel_size**2

    def merged(self) -> tuple[Tensor, Tensor | None]:
        if self.is_depthwise:
            kernel, bias = self.box().expand(self.out_channels, -1, -1, -1), None
        else:
            kernel, bias = fold(self.weight, None, self.inner_norm)
            kernel = kernel * self.box()
        return fold(kernel, bias, self.norm)


class PointwiseKxKBranch(ConstantsMixin, NormedBranch):
    """A 1x1 convolution and a norm, then a k x k one and a norm.

    If there are as many channels M between the two as input channels, the 1x1 kernel is a fixed
    identity plus a learned residual that starts at zero.

    Args:
        block (ReparamConv2d): See :class:`NormedBranch`.
        norm (Callable, optional): See :class:`NormedBranch`.
        middle_channels (int): The number of channels between the two convolutions, M.
    """

    def __init__(self, block: ReparamConv2d, norm: MakeNorm | None, middle_channels: int):
        super().__init__(block, norm)
        width = self.in_channels // self.groups
        self.has_identity = middle_channels == self.in_channels
        self.register_constants(torch.empty(0))
        if self.has_identity:
            self.residual = nn.Parameter(torch.zeros_like(self.identity))
        else:
            self.first = new_weight(middle_channels, width, 1, 1)
        self.inner_norm = norm(middle_channels) if norm else nn.Identity()
        size = self.kernel_size
        self.weight = new_weight(self.out_channels, middle_channels // self.groups, size, size)

    def reset_parameters(self) -> None:
        if self.has_identity:
            nn.init.zeros_(self.residual)
        else:
            reset_weight(self.first)
        reset_weight(self.weight)

    def constants(self) -> dict[str, Tensor]:
        return dict(identity=new_identity(self)) if self.has_identity else {}

    def pointwise(self) -> Tensor:
        """The 1x1 kernel, (M, I/g, 1, 1)."""
        return self.identity + self.residual if self.has_identity else self.first

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.pointwise(), groups=self.groups)
        x = normed_and_padded(self.inner_norm, x, self.padding)
        x = F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)
        return self.norm(x)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        first, inner_bias = fold(self.pointwise(), None, self.inner_norm)
        weight = self.weight.to(first)
        kernel, bias = kernels.compose_pointwise(first, weight, self.groups), None
        if inner_bias is not None:
            # The output of the k x k kernel for a constant image.
            constant = weight.sum((2, 3)).reshape(self.groups, -1, weight.shape[1])
            bias = (constant @ inner_bias.reshape(self.groups, -1, 1)).flatten()
        return fold(kernel, bias, self.norm)


def keeps_shape(block: ReparamConv2d) -> bool:
    """Whether the output of a block has the shape of its input, so that it can have an identity."""
    return (
        block.in_channels == block.out_channels
        and block.stride == (1, 1)
        and block.padding == block.same_padding
    )


def new_identity(branch: NormedBranch) -> Tensor:
    """The 1x1 kernel that changes nothing, (I, I/g, 1, 1), on the CPU."""
    with torch.device('cpu'):
        return kernels.grouped_identity(branch.in_channels, branch.in_channels, branch.groups)


def new_weight(*shape: int) -> nn.Parameter:
    """A weight with the initial values of ``nn.Conv2d``."""
    return reset_weight(nn.Parameter(torch.empty(shape)))


def reset_weight(weight: nn.Parameter) -> nn.Parameter:
    """Give a weight the initial values of ``nn.Conv2d``, and return it."""
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def normed_and_padded(norm: nn.Module, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """``norm(x)``, padded with the output of ``norm`` for zero in eval mode.

    Padding behind the norm then equals padding before it, so the branch can be merged (DBB,
    sec. 3.2). As in the released code, no gradient goes through the padding.

    Args:
        norm (nn.Module): A BatchNorm, or the identity.
        x (Tensor): (N, C, H, W).
        padding (tuple[int, int]): The padding of height and width.

    Returns:
        Tensor: (N, C, H + 2 * padding[0], W + 2 * padding[1]).
    """
    x = norm(x)
    top, left = padding
    if not isinstance(norm, _BatchNorm):
        return F.pad(x, [left, left, top, top])
    if padding == (0, 0):
        return x
    with torch.no_grad():
        zero = torch.zeros_like(norm.running_mean)
        border = F.batch_norm(
            zero[None], norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    n, c, height, width = x.shape
    border = border.to(x.dtype).reshape(1, c, 1, 1)
    if torch._C._are_functorch_transforms_active():
        # vmap cannot write into a tensor that is not batched.
        frame = [left, left, top, top]
        return F.pad(x, frame) + border * F.pad(torch.zeros_like(x), frame, value=1.0)
    framed = border.repeat(n, 1, height + 2 * top, width + 2 * left)
    framed[:, :, top : top + height, left : left + width] = x
    return framed


def fold(kernel: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor | None]:
    """:func:`mmorepa.convs.kernels.fold_batch_norm`, unless ``norm`` is the identity."""
    if isinstance(norm, _BatchNorm):
        return kernels.fold_batch_norm(kernel, bias, norm)
    return kernel, bias


def like(norm: _BatchNorm) -> MakeNorm:
    """A function that makes fresh BatchNorms of the kind of ``norm``, without its activation."""
    options = dict(eps=norm.eps, momentum=norm.momentum)
    return partial(_make_norm, norm_alone(norm), options, norm.weight.requires_grad)


def _make_norm(kind: type[_BatchNorm], options: dict, trainable: bool, channels: int) -> nn.Module:
    norm = kind(channels, **options)
    return norm if trainable else norm.requires_grad_(False)
