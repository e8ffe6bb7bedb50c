"""A plain convolution that trains approximately as an OREPA block would train its kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import check_flag
from ..constants import ConstantsMixin
from ..context import without_autocast
from ..conv2d import conv2d
from ..orepa.block import Branches, OREPAConv2d
from ..reparam import ReparamConv2d, geometry
from .gradient_tweaking import multiplier, tweak


class TweakedOREPAConv2d(ConstantsMixin, ReparamConv2d):
    """The plain form of an OREPA block, trained with gradient tweaking.

    The weight starts where the block's kernel would start, with the same random numbers. It is a
    parameter as in ``nn.Conv2d``, so state dicts are those of the plain network. The gradient of
    the weight is multiplied by a constant that stands for the branches, see
    :mod:`mmorepa.convs.blocks.gradient_tweaking`. The constant is computed from the arguments and
    not part of the state dict. A training step costs what a plain convolution costs, plus a product
    of the gradient with a k^2 x k^2 matrix.

    The optimizer's learning rate, momentum and weight decay act on the weight as usual. Optimizers
    that divide by the size of a gradient, such as AdamW, cancel a factor that all taps share.

    It takes the arguments of ``nn.Conv2d``. For those not listed see
    :class:`mmorepa.convs.reparam.ReparamConv2d`. Put one BatchNorm behind it.

    Args:
        bias (bool): Whether to add a learnable bias, starting at zero. Its gradient is not
            multiplied. Defaults to True.
        branches (Sequence[str] | Mapping[str, float | None], optional): The branches of the OREPA
            block, see :class:`mmorepa.OREPAConv2d`.
        slope (float, optional): The slope of the OREPA block's initial values, see
            :class:`mmorepa.OREPAConv2d`.
        train_scales (bool): Whether the scales count as parameters, see
            :func:`mmorepa.convs.blocks.gradient_tweaking.multiplier`. Defaults to True.

    Raises:
        UserError: As for :class:`mmorepa.OREPAConv2d`.

    Example:
        >>> conv = TweakedOREPAConv2d(4, 8, 3, padding=1, bias=False)
        >>> {name: tuple(value.shape) for name, value in conv.state_dict().items()}
        {'weight': (8, 4, 3, 3)}
    """

    options = ('branches', 'slope', 'train_scales')
    computed = ()

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
        branches: Branches = None,
        slope: float | None = None,
        train_scales: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        check_flag('TweakedOREPAConv2d', train_scales=train_scales)
        # torch.get_default_device() does not know of `with torch.device(...)`.
        device = torch.empty(0).device
        self._block_options = dict(branches=branches, slope=slope)
        # On the meta device the block would have no initial values.
        with torch.device('cpu'), torch.no_grad():
            block = self._new_block()
            self._multiplier = multiplier(block, train_scales)
            weight = block.squeeze().contiguous()
        self.weight = nn.Parameter(weight.to(device))
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_channels))
        else:
            self.register_parameter('bias', None)
        self.register_constants(self.weight)
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    def _new_block(self) -> OREPAConv2d:
        return OREPAConv2d(**geometry(self), bias=False, **self._block_options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        with torch.device('cpu'):
            self.weight.copy_(self._new_block().squeeze())
        super().reset_parameters()

    def constants(self) -> dict[str, Tensor]:
        # The constant is kept, because computing it again would draw random numbers.
        return dict(multiplier=self._multiplier)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    @torch.no_grad()
    def imitate(self, conv: nn.Conv2d, norm: _BatchNorm | None = None) -> None:
        self.weight.copy_(conv.weight)
        if conv.bias is not None:
            self.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # nn.Conv2d has a method of this name, which MMEngine's conv-BN evaluation calls.
        if torch.is_grad_enabled() and weight.requires_grad:
            weight = _Tweaked.apply(weight, self.multiplier)
        return conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.bias is not None else f'{text}, bias=False'


class _Tweaked(torch.autograd.Function):
    """The identity with a tweaked gradient.

    It is a part of the graph and not a hook on the parameter. Copies of a model, and wrappers that
    make parameters of their own, would lose a hook.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, multiplier: Tensor) -> Tensor:
        # A copy is saved because DDP broadcasts buffers in place between two passes.
        ctx.save_for_backward(multiplier.clone())
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (multiplier,) = ctx.saved_tensors
        # A backward pass may run under autocast, but gradients must keep their precision.
        with without_autocast(grad.device):
            return tweak(grad, multiplier.to(grad.dtype)), None
