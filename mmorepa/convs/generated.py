"""A convolution whose weight is generated from its parameters in every step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .conv2d import conv2d
from .kept import KeptKernel
from .reparam import ReparamConv2d, geometry
from .rows import in_order


class GeneratedConv2d(ReparamConv2d):
    """A convolution that costs a plain one over the feature map, whatever makes up its kernel.

    It is linear, and stands wherever an ``nn.Conv2d`` stands; ``weight`` is the generated kernel,
    read-only. In eval mode where no gradient is wanted, and where all its parameters are frozen,
    the kernel is kept until a parameter changes, so that it costs what an ``nn.Conv2d`` costs.
    Kernels are generated in float32 at least, under autocast and for half-precision parameters
    too.

    It takes the arguments of ``nn.Conv2d``. Subclasses add ``kernel``.

    Args:
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True.
        args: As of :class:`mmorepa.convs.reparam.ReparamConv2d`; ``kwargs`` likewise.
        options: The block's own.
    """

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
        **options,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_channels))
        else:
            self.register_parameter('bias', None)
        self._kept = KeptKernel()
        self.add_kernel(**options)

    def add_kernel(self, **options) -> None:
        """Add ``kernel``, a module whose call gives the kernel, (O, I/g, k, k)."""
        raise NotImplementedError

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, norm: _BatchNorm | None = None, **options):
        """As in :class:`ReparamConv2d`; ``norm`` stays where it is."""
        block = cls(**geometry(conv), bias=conv.bias is not None, **options)
        return block.to(conv.weight.device, conv.weight.dtype)

    def squeeze(self) -> Tensor:
        """Squeeze the branches into one kernel (paper, sec. 3.2, "block squeezing").

        Returns:
            Tensor: (O, I/g, k, k), float32 or float64, with a graph back to the parameters where
            gradients are on; in whatever memory format it was made.
        """
        sample = next(self.kernel.parameters())
        with torch.autocast(sample.device.type, enabled=False):
            if sample.dtype in (torch.float16, torch.bfloat16):
                tensors = dict(self.kernel.named_parameters()) | dict(self.kernel.named_buffers())
                wide = {name: tensor.float() for name, tensor in tensors.items()}
                return torch.func.functional_call(self.kernel, wide, ())
            return self.kernel()

    def merged(self) -> tuple[Tensor, Tensor | None]:
        return self.squeeze(), self.bias

    @torch.no_grad()
    def imitate(self, conv: nn.Conv2d, norm: _BatchNorm | None = None) -> None:
        self.imitate_kernel(conv.weight)
        if conv.bias is not None:
            self.bias.copy_(conv.bias)

    @torch.no_grad()
    def imitate_kernel(self, kernel: Tensor) -> None:
        """Set the parameters so that :meth:`squeeze` gives ``kernel``, (O, I/g, k, k).

        Raises:
            UserError: If this block cannot.
        """
        dtype = next(self.kernel.parameters()).dtype
        self.kernel.double().imitate(kernel.double())
        self.kernel.to(dtype)
        self._kept.drop()

    @property
    def weight(self) -> Tensor:
        """The generated kernel, (O, I/g, k, k), in the parameters' dtype. Read-only."""
        return self.weight_in(torch.contiguous_format)

    def weight_in(self, memory_format: torch.memory_format) -> Tensor:
        """:attr:`weight` in a memory format."""
        trains = torch.is_grad_enabled() or self.training
        compiling = torch.compiler.is_compiling()
        kept = None if compiling else self._kept.get(memory_format, frozen=trains)
        if kept is not None:
            return kept
        frozen = not any(p.requires_grad for p in self.kernel.parameters())
        if compiling or (trains and not frozen):
            return self._kernel_in(memory_format)
        # No inference tensor, even if asked for under inference_mode: a later backward pass to the
        # input may need it.
        with torch.inference_mode(False), torch.no_grad():
            kernel = self._kernel_in(memory_format)
        self._kept.keep(kernel, self.kernel, memory_format)
        return kernel

    def _kernel_in(self, memory_format: torch.memory_format) -> Tensor:
        kernel = self.squeeze().to(next(self.kernel.parameters()).dtype)
        if memory_format == torch.channels_last:
            return kernel.contiguous(memory_format=memory_format)
        return in_order(kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        # A convolution answers in the format of its weight, which should not decide it.
        is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        return self._conv_forward(x, self.weight_in(memory_format), self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The name is nn.Conv2d's: mmcv's and MMEngine's conv-BN evaluation call it.
        return conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def train(self, mode: bool = True):
        # Values written through `.data` leave no trace (MMEngine's EMA swap does it); whoever
        # does so goes through train() or eval() next.
        self._kept.drop()
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._kept.drop()
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.bias is not None else f'{text}, bias=False'


@contextlib.contextmanager
def keeping_kernels(model: nn.Module) -> Iterator[None]:
    """Let ``model.train()`` and ``model.eval()`` drop no kernel that a block has kept.

    For who knows that nothing was written through ``.data`` since.
    """
    blocks = [module for module in model.modules() if isinstance(module, GeneratedConv2d)]
    kept = [block._kept for block in blocks]
    for block in blocks:
        block._kept = KeptKernel()
    try:
        yield
    finally:
        for block, kernel in zip(blocks, kept):
            block._kept = kernel
