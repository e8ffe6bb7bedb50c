"""The base class of all re-parameterised convolutions.

Whatever such a convolution trains as, it is equivalent to one kernel and perhaps a bias. It has the
geometry of the ``nn.Conv2d`` that it replaces, and becomes one in the end.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from . import kernels
from .arguments import check_integers
from .held import HeldWeight
from .rows import in_order


class ReparamConv2d(nn.Conv2d):
    """A convolution in its training form.

    To code that reads it, it is an ``nn.Conv2d``: ``weight`` is a tensor with the present kernel of
    the block. The kernel is computed from other parameters, which are those in the state dict. A
    write to ``weight`` is therefore never lost in silence:

    - In eval mode an assignment, ``conv.weight = parameter`` or ``conv.weight.data = tensor``,
      turns the object into a plain ``nn.Conv2d`` with that weight, like :meth:`switch_to_deploy`.
      Tools that fold a BatchNorm into a convolution make such assignments.
    - After any other write the next use raises an error, which advises squeezing first.

    A write that autograd does not count, such as ``conv.weight.data.zero_()`` or one through NumPy,
    cannot be detected.

    Subclasses add their parameters, ``forward``, ``weight``, :meth:`merged` and :meth:`imitate`.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        kernel_size (int | tuple[int, int]): The kernel size, k, odd and square.
        stride (int | tuple[int, int]): The stride. Defaults to 1.
        padding (int | tuple[int, int] | str): The zeros around the input; ``'same'`` stands for
            ``dilation * (k // 2)``, ``'valid'`` for 0. Defaults to 0.
        dilation (int | tuple[int, int]): The dilation. Defaults to 1.
        groups (int): The number of groups, g. Defaults to 1.
        padding_mode (str): Must be ``'zeros'``.

    Raises:
        UserError: If a number of channels or groups, a size, a stride or a dilation is no integer
            of at least 1, or a padding none of at least 0; if the kernel is even or not square, or
            if the block does not support its size; if the channels are not multiples of the
            groups; if the padding mode is another one.
    """

    #: The kernel sizes that the block supports, as a range.
    sizes = range(1, 1 << 30, 2)
    #: The names of the block's options besides its geometry.
    options = ()
    #: Whether the BatchNorms are inside, so that there must be none behind the block.
    takes_norm = False
    #: The tensors of an ``nn.Conv2d`` that are computed from the parameters.
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
        # The constructor of nn.Conv2d is not called, because it would make a weight.
        nn.Module.__init__(self)
        # With this name torch.fx treats the block as one layer, like those of torch.nn.
        self.__module__ = nn.Conv2d.__module__
        self.held = HeldWeight()
        name = type(self).__name__
        check_integers(
            name,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
        )
        height, width = pair(kernel_size)
        if height != width or height % 2 == 0:
            raise UserError(
                f'{name}: kernel_size={kernel_size} is not odd and square; '
                'use nn.Conv2d for this layer'
            )
        if height not in self.sizes:
            raise UserError(
                f'{name}: kernel_size={kernel_size} is not among the sizes that it is made for, '
                f'{self.sizes[0]} to {self.sizes[-1]}; use nn.Conv2d for this layer'
            )
        if in_channels % groups or out_channels % groups:
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
        """Give all parameters new initial values, for example after ``to_empty``."""
        for module in self.modules():
            if module is not self and hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        if self._parameters.get('bias') is not None:
            nn.init.zeros_(self.bias)

    def hand_out(self, tensor: Tensor) -> Tensor:
        """Note a computed tensor that is returned to a caller, to detect writes to it."""
        self.held.hold(tensor)
        return tensor

    def refresh(self) -> None:
        """Update whatever is computed from the parameters and kept; nothing in this class.

        It is called after a state dict has been loaded.
        """

    def settle(self) -> None:
        """Check the weight that was returned last for writes, before the block is used.

        If a tool has replaced its data in eval mode, the block becomes a plain convolution.

        Raises:
            UserError: If the weight was written to in another way.
        """
        if self.held.is_written:
            if self.held.is_replaced and not self.training:
                written = self.held.tensor.detach()
                _, bias = self.merged()
                self.become_conv(written, bias)
            else:
                raise UserError(self.written_text())

    def written_text(self) -> str:
        """The error message for a weight that was written to."""
        return (
            f'{self}: its weight follows from the branches, and was written to: turn the model '
            'into plain convolutions first, with mmorepa.squeeze(model), or write to the branches'
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Like ``nn.Module``'s; for computed tensors such as ``weight`` see the class."""
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
        # Whether a BatchNorm is there cannot be seen from here; zeros change nothing if it is.
        bias = state_dict.get(f'{prefix}bias')
        if bias is not None and (bias.is_meta or bias.any()):
            self.refuse_folded_bias(state_dict, prefix)
        if self.is_plain_in(state_dict, prefix):
            self._take_plain(state_dict, prefix, errors)
        self._refuse_another_block(state_dict, prefix)
        nn.Module._load_from_state_dict(
            self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )

    def is_plain_in(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether a state dict has a plain convolution in place of this block.

        Then it has the block's ``weight``, and not the parameters that it would be computed from.

        Args:
            state_dict (Mapping[str, Tensor]): The state dict of a model.
            prefix (str): The prefix of this block's names there, with a dot at the end.
        """
        if 'weight' not in self.computed or f'{prefix}weight' not in state_dict:
            return False
        branches = tuple(f'{prefix}{name}.' for name in self._modules)
        return not any(key.startswith(branches) for key in state_dict)

    def _take_plain(self, state_dict: dict[str, Tensor], prefix: str, errors: list[str]) -> None:
        """Imitate the plain convolution in a state dict, and replace it there by the parameters."""
        weight = state_dict.pop(f'{prefix}weight')
        take = state_dict.pop if 'bias' in self.computed else state_dict.get
        bias = take(f'{prefix}bias', None)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if weight.shape == shape:
            try:
                self.start_from(weight, bias)
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

    def start_from(self, weight: Tensor, bias: Tensor | None) -> None:
        """Imitate a plain convolution of the same geometry that was loaded.

        Args:
            weight (Tensor): (O, I/g, k, k).
            bias (Tensor, optional): (O,). A bias that the block has itself is loaded as it is.

        Raises:
            UserError: If this block cannot imitate the convolution, or has no memory for it.
        """
        self.imitate(self.plain(weight))

    def plain(self, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
        """A plain convolution of this geometry with these weights."""
        conv = nn.Conv2d(**geometry(self), bias=bias is not None, device='meta')
        sample = next(self.parameters())
        if sample.is_meta and not weight.is_meta:
            raise UserError(
                'the block that is to imitate it is on the meta device, without values: call '
                "model.to_empty(device='cpu') and the modules' reset_parameters() first"
            )
        conv.weight = nn.Parameter(weight.detach().to(sample.device), requires_grad=False)
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().to(sample.device), requires_grad=False)
        return conv

    def refuse_folded_bias(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Refuse a state dict with a bias for this block that no convolution of it can take.

        Args:
            state_dict (Mapping[str, Tensor]): The state dict of a model.
            prefix (str): The prefix of this block's names there, with a dot at the end.

        Raises:
            UserError: If the block has no bias, and no BatchNorm that a plain one goes into.
        """
        if f'{prefix}bias' not in state_dict or self._parameters.get('bias') is not None:
            return
        if not (self.takes_norm and self.is_plain_in(state_dict, prefix)):
            self.refuse_folded(f'a bias, {prefix}bias')

    def refuse_folded(self, found: str) -> None:
        """Refuse weights of a deploy form, whose BatchNorms are folded.

        Args:
            found (str): The part of the state dict that shows it, for the message.

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

    def _refuse_another_block(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Refuse a state dict in which this block has other parameters, strict or not.

        Branches that keep their initial values, or are left out, give another kernel.
        """
        own = {f'{prefix}{name}' for name in nn.Module.state_dict(self)}
        found = {key for key in state_dict if key.startswith(prefix)}
        # Blocks inside this one look at their own.
        blocks = [n for n, m in self.named_modules() if n and isinstance(m, ReparamConv2d)]
        theirs = tuple(f'{prefix}{name}.' for name in blocks)
        more = {key for key in found - own if not key.startswith(theirs)}
        less = {key for key in own - found if not key.startswith(theirs)}
        more -= {f'{prefix}bias'}  # zeros, or refused before
        less = {key for key in less if not key.endswith('num_batches_tracked')}
        if found and (more or less):
            wrong = [f'has {min(more)}'] if more else []
            wrong += [f'lacks {min(less)}'] if less else []
            raise UserError(
                f'{self}: the state dict {" and ".join(wrong)}, as of another block or of other '
                'options: build the model as it was when the state dict was saved'
            )

    def _padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int]:
        name = type(self).__name__
        if padding == 'same':
            if self.stride != (1, 1):
                raise UserError(f"{name}: padding='same' wants stride 1, not {self.stride}")
            return self.same_padding
        padding = 0 if padding == 'valid' else padding
        check_integers(name, least=0, padding=padding)
        return pair(padding)

    @property
    def same_padding(self) -> tuple[int, int]:
        """The padding that keeps height and width at stride 1, ``dilation * (k // 2)``."""
        return tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel_size))

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved separately."""
        return self.groups == self.in_channels == self.out_channels

    @classmethod
    def misfit(cls, conv: nn.Conv2d, norm: _BatchNorm | None = None, **options) -> str:
        """What about ``conv`` keeps a block from replacing it; empty if nothing does.

        The arguments are those of :meth:`from_conv`.
        """
        if has_own_forward(conv):
            return 'a forward of its own'
        if conv.weight.is_complex():
            return 'complex weights'
        height, width = conv.kernel_size
        if height != width or height not in cls.sizes:
            return f'a kernel of {height}x{width}'
        return '' if conv.padding_mode == 'zeros' else f'{conv.padding_mode} padding'

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, norm: _BatchNorm | None = None, **options):
        """A freshly initialised block with the geometry of ``conv``.

        Args:
            conv (nn.Conv2d): The convolution to replace.
            norm (_BatchNorm, optional): The BatchNorm behind ``conv``. A block with BatchNorms
                inside makes BatchNorms of the same kind, and replaces ``norm`` as well.
            options: Options of the block.

        Returns:
            ReparamConv2d: The block, on the device and in the dtype of ``conv``.
        """
        like = dict(device=conv.weight.device, dtype=conv.weight.dtype)
        return cls(**geometry(conv), bias=conv.bias is not None, **like, **options)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The equivalent kernel (O, I/g, k, k) of the block, and its bias (O,), if any.

        For a block with BatchNorms inside, they are equivalent to its eval mode. The result is
        differentiable.
        """
        raise NotImplementedError

    def imitate(self, conv: nn.Conv2d, norm: _BatchNorm | None = None) -> None:
        """Set the parameters so that the block computes what ``conv`` computes.

        Where possible, the other branches start without effect; see each block.

        Args:
            conv (nn.Conv2d): A convolution of the same geometry.
            norm (_BatchNorm, optional): The BatchNorm behind it, for blocks with BatchNorms inside.

        Raises:
            UserError: If this block cannot imitate ``conv``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def switch_to_deploy(self, norm: _BatchNorm | None = None) -> nn.Conv2d:
        """Turn this block into the plain ``nn.Conv2d`` that it is equivalent to, in place.

        Everything is computed in float64 and stored in the parameters' dtype. The object itself
        becomes an ``nn.Conv2d``, so every module that holds it, even several that share it, holds
        the plain convolution from then on.

        Args:
            norm (_BatchNorm, optional): A BatchNorm behind the block, which is folded in.

        Returns:
            nn.Conv2d: The same object.
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
        """Turn this object into an ``nn.Conv2d`` with these weights, in the block's dtype."""
        sample = next(self.parameters())
        trainable = any(p.requires_grad for p in self.parameters())
        kernel, bias = kernel.detach(), bias if bias is None else bias.detach()
        plain = nn.Conv2d(**geometry(self), bias=bias is not None, device='meta')
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
    """A hook that calls :meth:`ReparamConv2d.refresh`; :meth:`become_conv` removes it."""
    block.refresh()


def has_own_forward(module: nn.Module) -> bool:
    """Whether an object has a ``forward`` that is not that of its class."""
    return not vars(module).keys().isdisjoint(('forward', '_conv_forward'))


def geometry(conv: nn.Conv2d) -> dict:
    """The arguments that a block shares with the convolution that it replaces."""
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
    """``value`` as a pair for height and width."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)
