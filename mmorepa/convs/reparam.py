"""What every convolution that trains as something bigger shares.

Whatever it trains as, it amounts to one kernel and perhaps a bias, has the geometry of the
``nn.Conv2d`` whose place it takes, and becomes one in the end.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from . import kernels
from .held import HeldWeight
from .rows import in_order


class ReparamConv2d(nn.Conv2d):
    """A convolution in its training form.

    It is an ``nn.Conv2d`` to whoever reads one: ``weight`` is a tensor with the kernel that the
    block amounts to now. The kernel follows from other parameters, which are the ones in the state
    dict, so a write to ``weight`` is never lost in silence:

    - In eval mode an assignment, ``conv.weight = parameter`` or ``conv.weight.data = tensor``, is
      what tools do that fold a BatchNorm into a convolution. It counts: the object becomes a plain
      ``nn.Conv2d`` with that weight, as by :meth:`switch_to_deploy`.
    - After any other write the next use raises an error, which says to squeeze first.

    A write that autograd does not count, ``conv.weight.data.zero_()`` or one through NumPy, cannot
    be seen.

    Subclasses add their parameters, ``forward``, ``weight``, :meth:`merged` and :meth:`imitate`.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int | tuple[int, int]): k, odd and square.
        stride (int | tuple[int, int]): Defaults to 1.
        padding (int | tuple[int, int] | str): Zeros around the input; ``'same'`` stands for
            ``dilation * (k // 2)``, ``'valid'`` for 0. Defaults to 0.
        dilation (int | tuple[int, int]): Defaults to 1.
        groups (int): g. Defaults to 1.
        padding_mode (str): Only ``'zeros'``.

    Raises:
        UserError: If the kernel is even or not square, or of a size that this block is not made
            for; if channels and groups do not divide; for another padding mode.
    """

    #: Kernel sizes that the block is made for, as a range.
    sizes = range(1, 1 << 30, 2)
    #: What it can be told besides its geometry.
    options = ()
    #: Whether the BatchNorms are inside, so that none belongs behind the block.
    takes_norm = False
    #: What follows from the parameters and is none itself.
    computed = ('weight',)

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
    ):
        # Not the constructor of nn.Conv2d, which would make a weight.
        nn.Module.__init__(self)
        # To torch.fx it is one layer, as what it looks up under this name in torch.nn is.
        self.__module__ = nn.Conv2d.__module__
        self.held = HeldWeight()
        name = type(self).__name__
        height, width = pair(kernel_size)
        if height != width or height % 2 == 0 or height < 1:
            raise UserError(
                f'{name}: kernel_size={kernel_size} is not odd and square; '
                'use nn.Conv2d for this layer'
            )
        if height not in self.sizes:
            raise UserError(
                f'{name}: kernel_size={kernel_size} is not among the sizes that it is made for, '
                f'{self.sizes[0]} to {self.sizes[-1]}; use nn.Conv2d for this layer'
            )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(
                f'{name}: in_channels={in_channels} and out_channels={out_channels} '
                f'must both be multiples of groups={groups}'
            )
        if padding_mode != 'zeros':
            raise UserError(
                f"{name}: padding_mode={padding_mode!r} is not supported, only 'zeros'; "
                'pad before the convolution instead'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (height, width)
        self.stride = pair(stride)
        self.dilation = pair(dilation)
        self.padding = self._padding(padding)
        self.groups = groups
        self.transposed = False
        self.output_padding = (0, 0)
        self.padding_mode = padding_mode
        self._reversed_padding_repeated_twice = [p for p in reversed(self.padding) for _ in (0, 1)]

    def reset_parameters(self) -> None:
        """Give all parameters initial values anew, as after ``to_empty``."""
        for module in self.modules():
            if module is not self and hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        if self._parameters.get('bias') is not None:
            nn.init.zeros_(self.bias)

    def hand_out(self, tensor: Tensor) -> Tensor:
        """Note a computed tensor that somebody is given, to see whether it is written to."""
        self.held.hold(tensor)
        return tensor

    def refresh(self) -> None:
        """Bring up to date what follows from the parameters and is kept beside them; nothing here.

        It is called once a state dict has been loaded.
        """

    def settle(self) -> None:
        """See what became of the weight that was handed out, before anything is done with it.

        Raises:
            UserError: If it was written to, and the write does not count.
        """
        if self.held.is_written:
            if self.held.is_replaced and not self.training:
                written = self.held.tensor.detach()
                _, bias = self.merged()
                self.become_conv(written, bias)
            else:
                raise UserError(self.written_text())

    def written_text(self) -> str:
        """What is wrong if the weight was written to."""
        return (
            f'{self}: its weight follows from the branches, and was written to: turn the model '
            'into plain convolutions first, with mmorepa.squeeze(model), or write to the branches'
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module`` has it, but see the class for what is computed."""
        if name not in self.computed or param is None:
            super().register_parameter(name, param)
        elif self.training:
            raise UserError(self.written_text())
        else:
            kernel, bias = self.merged()
            self.become_conv(*((param, bias) if name == 'weight' else (kernel, param)))

    def train(self, mode: bool = True):
        self.settle()
        # The object may have become an nn.Conv2d.
        return nn.Module.train(self, mode)

    def _apply(self, *args, **kwargs):
        self.settle()
        self.held.drop()
        return nn.Module._apply(self, *args, **kwargs)

    def _save_to_state_dict(self, *args) -> None:
        self.settle()
        nn.Module._save_to_state_dict(self, *args)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        if self.is_plain_in(state_dict, prefix):
            self._take_plain(state_dict, prefix, errors)
        elif f'{prefix}bias' in state_dict and self._parameters.get('bias') is None:
            self.refuse_folded(f'a bias, {prefix}bias')
        nn.Module._load_from_state_dict(
            self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )

    def is_plain_in(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether a state dict has a plain convolution in the place of this block.

        ``weight`` is there then, and what it would follow from is not.

        Args:
            state_dict (Mapping[str, Tensor]): Of a model.
            prefix (str): What the names of this block begin with there, a dot at the end.
        """
        if 'weight' not in self.computed or f'{prefix}weight' not in state_dict:
            return False
        branches = tuple(f'{prefix}{name}.' for name in self._modules)
        return not any(key.startswith(branches) for key in state_dict)

    def _take_plain(self, state_dict: dict[str, Tensor], prefix: str, errors: list[str]) -> None:
        """Imitate the plain convolution in a state dict, and put what comes of it in its place."""
        weight = state_dict.pop(f'{prefix}weight')
        take = state_dict.pop if 'bias' in self.computed else state_dict.get
        bias = take(f'{prefix}bias', None)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if weight.shape == shape:
            try:
                self.start_from(weight, bias, prefix)
            except UserError as error:
                raise UserError(f'{prefix}weight: {error}') from None
        else:
            errors.append(
                f'size mismatch for {prefix}weight: copying a param with shape '
                f'{tuple(weight.shape)} from checkpoint, the shape in current model is {shape}.'
            )
        for name, value in nn.Module.state_dict(self).items():
            if '.' in name:
                state_dict[f'{prefix}{name}'] = value

    def start_from(self, weight: Tensor, bias: Tensor | None, prefix: str = '') -> None:
        """Imitate a plain convolution of the same geometry; what loading one comes to.

        Args:
            weight (Tensor): (O, I/g, k, k).
            bias (Tensor, optional): (O,).
            prefix (str): The block's name in the state dict, for messages.

        Raises:
            UserError: If there is a bias and none in the block, which is so in a deploy form, or
                if this block cannot imitate.
        """
        if bias is not None and self._parameters.get('bias') is None:
            self.refuse_folded(f'a bias, {prefix}bias')
        self.imitate(self.plain(weight))

    def plain(self, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
        """A plain convolution of this geometry with these weights."""
        conv = nn.Conv2d(**geometry(self), bias=bias is not None, device='meta')
        sample = next(self.parameters())
        conv.weight = nn.Parameter(weight.detach().to(sample.device), requires_grad=False)
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().to(sample.device), requires_grad=False)
        return conv

    def refuse_folded(self, found: str) -> None:
        """Refuse weights of a deploy form, whose BatchNorms are folded.

        Args:
            found (str): What tells.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f'{self}: the state dict has {found}, as a deploy form whose BatchNorms are folded: '
            'load it into the deploy form (deploy=True, or mmorepa.switch_to_deploy(model) '
            'first), or train from what convert.py --keep-bn writes'
        )

    def __reduce_ex__(self, protocol):
        self.settle()
        return object.__reduce_ex__(self, protocol)

    def _padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int]:
        if padding == 'same':
            if self.stride != (1, 1):
                name = type(self).__name__
                raise UserError(f"{name}: padding='same' wants stride 1, not {self.stride}")
            return self.same_padding
        return pair(0 if padding == 'valid' else padding)

    @property
    def same_padding(self) -> tuple[int, int]:
        """The padding that keeps height and width at stride 1, ``dilation * (k // 2)``."""
        return tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel_size))

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups == self.in_channels == self.out_channels

    @classmethod
    def accepts(cls, conv: nn.Conv2d, norm: _BatchNorm | None = None, **options) -> bool:
        """Whether a block can take the place of ``conv``; arguments as of :meth:`from_conv`."""
        height, width = conv.kernel_size
        return height == width and height in cls.sizes and conv.padding_mode == 'zeros'

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, norm: _BatchNorm | None = None, **options):
        """A freshly initialised block of the geometry of ``conv``.

        Args:
            conv (nn.Conv2d): The convolution whose place it takes.
            norm (_BatchNorm, optional): The one behind it. A block that has its BatchNorms inside
                makes them of the same kind, and takes its place as well.
            options: The block's own.

        Returns:
            ReparamConv2d: On the device and in the dtype of ``conv``.
        """
        raise NotImplementedError

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The kernel (O, I/g, k, k) and the bias (O,), if any, that the block amounts to.

        With BatchNorms inside, what it amounts to in eval mode. Differentiable.
        """
        raise NotImplementedError

    def imitate(self, conv: nn.Conv2d, norm: _BatchNorm | None = None) -> None:
        """Set the parameters so that the block computes what ``conv`` computes.

        Other branches start without effect where they can; see each block.

        Args:
            conv (nn.Conv2d): Of the same geometry.
            norm (_BatchNorm, optional): The one behind it, for blocks with BatchNorms inside.

        Raises:
            UserError: If this block cannot.
        """
        raise NotImplementedError

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
        self.settle()
        if type(self) is nn.Conv2d:
            kernel, bias = self.weight, self.bias
        else:
            kernel, bias = copy.deepcopy(self).double().merged()
        if norm is not None:
            kernel, bias = kernels.fold_batch_norm(kernel, bias, norm)
        return ReparamConv2d.become_conv(self, kernel, bias)

    def become_conv(self, kernel: Tensor, bias: Tensor | None) -> nn.Conv2d:
        """Turn this object into an ``nn.Conv2d`` with these weights, in its own dtype."""
        sample = next(self.parameters())
        trainable = any(p.requires_grad for p in self.parameters())
        kernel, bias = kernel.detach(), bias if bias is None else bias.detach()
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
        plain.weight = nn.Parameter(in_order(kernel.to(sample.dtype)), trainable)
        if bias is not None:
            plain.bias = nn.Parameter(bias.to(sample.dtype), trainable)
        state = self.__dict__
        for name in ('_modules', '_parameters', '_buffers', '_non_persistent_buffers_set'):
            state[name] = plain.__dict__[name]
        for name in state.keys() - plain.__dict__.keys():
            del state[name]
        for key in [k for k, h in self._load_state_dict_post_hooks.items() if h is after_loading]:
            del self._load_state_dict_post_hooks[key]
        for name, value in plain.__dict__.items():
            state.setdefault(name, value)
        self.__class__ = nn.Conv2d
        return self

    def init_weights(self) -> None:
        """Do nothing: the constructor has set the initial values.

        Without this method mmcv's ``ConvModule`` would initialise the block.
        """

    def extra_repr(self) -> str:
        text = f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}'
        text += f', stride={self.stride}, padding={self.padding}'
        if self.dilation != (1, 1):
            text += f', dilation={self.dilation}'
        return text if self.groups == 1 else f'{text}, groups={self.groups}'

    def __str__(self) -> str:
        return f'{type(self).__name__}({self.extra_repr()})'


def after_loading(block: ReparamConv2d, _) -> None:
    """A hook for :meth:`ReparamConv2d.refresh`; a plain convolution does not keep it."""
    block.refresh()


def geometry(conv: nn.Conv2d) -> dict:
    """The arguments that a block shares with the convolution whose place it takes."""
    return dict(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        padding_mode=conv.padding_mode,
    )


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """``value`` for height and width."""
    return (value, value) if isinstance(value, int) else tuple(value)
