"""A convolution whose weight is generated from its parameters in every step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from .context import is_traced, without_autocast
from .conv2d import conv2d
from .held import Snapshot, has_memory
from .reparam import ReparamConv2d, after_loading, geometry
from .rows import in_order


class GeneratedConv2d(ReparamConv2d):
    """A convolution that costs a plain one over the feature map, whatever makes up its kernel.

    It is linear, and stands wherever an ``nn.Conv2d`` stands. Its ``kernel`` is a module that gives
    the kernel; the parameters in there are the truth, ``weight`` follows from them. Kernels are
    generated in float32 at least, under autocast and for half-precision parameters too.

    It takes the arguments of ``nn.Conv2d``. Subclasses add ``kernel``.

    Args:
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True.
        mode (str): ``'online'`` generates the kernel with a graph in each forward pass that wants
            gradients; it is right under any training loop. ``'squeezed'`` trains on the kernel as
            a leaf, and leaves the parameters to :class:`mmorepa.SqueezedTraining`. Defaults to
            ``'online'``.
        args: As of :class:`mmorepa.convs.reparam.ReparamConv2d`; ``kwargs`` likewise.
        options: The block's own.

    Raises:
        UserError: As there, and for another mode.
    """

    options: tuple[str, ...] = ('mode',)
    #: The modes that there are.
    modes: tuple[str, ...] = ('online', 'squeezed')

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
        mode: str = 'online',
        **options,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_channels))
        else:
            self.register_parameter('bias', None)
        #: Whether another process steps the parameters, which are out of date here.
        self.is_behind = False
        #: Whether the leaf has had a gradient that nobody has pulled back.
        self.has_gradient = False
        self._gave_gradients = False
        self._holds_through_modes = False
        self._mode = 'online'
        self.add_kernel(**options)
        self.mode = mode
        self.register_load_state_dict_post_hook(after_loading)

    def add_kernel(self, **options) -> None:
        """Add ``kernel``, a module whose call gives the kernel, (O, I/g, k, k)."""
        raise NotImplementedError

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, norm: _BatchNorm | None = None, **options):
        """As in :class:`ReparamConv2d`; ``norm`` stays where it is."""
        block = cls(**geometry(conv), bias=conv.bias is not None, **options)
        return block.to(conv.weight.device, conv.weight.dtype)

    @property
    def mode(self) -> str:
        """How the kernel is trained, see the class. It can be changed at any time.

        In squeezed mode autograd, and with it ``DistributedDataParallel``, sees the leaf ``weight``
        alone: the parameters of ``kernel`` do not require grad, whatever is trained. In the other
        modes they do, if the leaf did.
        """
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in self.modes:
            raise UserError(
                f'{type(self).__name__}: mode={mode!r} is not known; choose '
                f'{", ".join(map(repr, self.modes))}'
            )
        if mode == self._mode:
            return
        self.settle()
        self.held.drop()
        if self._mode == 'squeezed':
            leaf = self._parameters.pop('weight')
            self.kernel.requires_grad_(leaf.requires_grad)
        if mode == 'squeezed':
            trained = any(p.requires_grad for p in self.kernel.parameters())
            with torch.no_grad():
                kernel = self._kernel_in(torch.contiguous_format)
            self.kernel.requires_grad_(False)
            self._parameters['weight'] = nn.Parameter(kernel, requires_grad=trained)
            self._watch_leaf()
            self.hold_leaf()
        self._mode = mode

    def squeeze(self) -> Tensor:
        """Squeeze the branches into one kernel (paper, sec. 3.2, "block squeezing").

        Returns:
            Tensor: (O, I/g, k, k), float32 or float64, with a graph back to the parameters where
            gradients are on; in whatever memory format it was made.

        Raises:
            UserError: If another process steps the parameters, see
                :meth:`mmorepa.SqueezedTraining.consolidate`.
        """
        self.refuse_behind()
        sample = self._sample()
        with without_autocast(sample.device):
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
        dtype = self._sample().dtype
        self.kernel.double().imitate(kernel.double())
        self.kernel.to(dtype)

    @property
    def weight(self) -> Tensor:
        """The generated kernel, (O, I/g, k, k), in the parameters' dtype.

        In squeezed mode it is a leaf. In the others it has a graph back to the parameters where
        gradients are on and wanted. See :class:`mmorepa.convs.reparam.ReparamConv2d` for writes.
        """
        if is_traced() or self.is_replica:
            return self._traced_weight()
        self.settle()
        if type(self) is nn.Conv2d:
            return self._parameters['weight']
        if self._mode == 'squeezed':
            return self._leaf()
        # Not in the format of the last image: tools begin with `weight.view(out_channels, -1)`.
        weight = self._present_weight(torch.contiguous_format)
        return weight if weight is self.held.tensor else self.hand_out(weight)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        if self._mode != 'squeezed' or 'weight' in self._parameters:
            raise UserError(self.written_text())
        self._refuse_other_leaf()
        self.__dict__['_lent'] = value

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == 'weight' and self.__dict__.get('_mode') == 'squeezed':
            if 'weight' not in self._parameters:
                self._refuse_other_leaf()
        super().register_parameter(name, param)

    def _refuse_other_leaf(self) -> None:
        """Refuse a leaf in the place of one that was taken out; DataParallel's replicas have one.

        Its gradient would be pulled back to nothing.
        """
        if not self.is_replica:
            raise UserError(
                f'{self}: its kernel was taken out of it, as FSDP and parametrizations do, which '
                "does not go with mode='squeezed': train it in mode='online'"
            )

    def _lent_leaf(self) -> Tensor:
        if '_lent' not in self.__dict__:
            raise AttributeError(f'{self}: its kernel was taken out of it')
        return self._lent

    def _traced_weight(self) -> Tensor:
        if self._mode == 'squeezed':
            leaf = self._parameters.get('weight')
            leaf = self._lent_leaf() if leaf is None else leaf
            # Exporters and counters look for parameters in the state dict, and take no other tensor
            # that requires grad.
            return leaf.data if torch.jit.is_tracing() else leaf
        return self._kernel_in(torch.contiguous_format)

    def _leaf(self) -> nn.Parameter:
        """The leaf, with the kernel of the parameters as they are.

        Raises:
            UserError: If somebody trained the leaf, and not the parameters.
        """
        leaf = self._parameters.get('weight')
        if leaf is None:
            return self._lent_leaf()
        if self.has_gradient and leaf.grad is None:
            raise UserError(
                f'{self}: the gradient of its kernel was dropped before it was pulled back to the '
                f'branches: {TRAINING_ADVICE}'
            )
        self.refresh()
        return leaf

    @torch.no_grad()
    def refresh(self) -> None:
        """Let the leaf of squeezed mode follow the parameters, if it is out of date.

        It does so at once wherever that shows, for the sake of what takes the leaf without asking
        for :attr:`weight`: compilers, ``torch.func``, replicas.
        """
        leaf, own = self._parameters.get('weight'), self.held.tensor
        if self._mode != 'squeezed' or leaf is None or self.is_behind or self.held.is_fresh:
            return
        # Another one is lent by torch.func.functional_call; and on the way from one device to
        # another there is nothing to follow yet.
        if (own is not None and own is not leaf) or self._sample().device != leaf.device:
            return
        with torch.inference_mode(False), torch.no_grad():
            kernel = self.squeeze().to(leaf.dtype)
            # What has not changed is left alone: autograd may hold on to it.
            if not has_memory(leaf) or not torch.equal(leaf, kernel):
                leaf.copy_(kernel)
            self.hold_leaf()

    def hold_leaf(self) -> None:
        """Note that the leaf is the kernel of the parameters as they are; in squeezed mode."""
        if not self.held.renew(self._parameters['weight']):
            self.held.hold(self._parameters['weight'], Snapshot.of(self.kernel))

    def settle(self) -> None:
        # Where the parameters have changed too, as by a broadcast of all, the leaf follows them.
        if self._mode != 'squeezed' or self.is_behind or self.held.is_fresh:
            super().settle()

    def written_text(self) -> str:
        if self._mode == 'squeezed' and self.training:
            return (
                f'{self}: its kernel was written to, perhaps by an optimizer that does not know '
                f'of the branches: {TRAINING_ADVICE}; or turn the model into plain convolutions '
                'first, with mmorepa.squeeze(model)'
            )
        return super().written_text()

    def refuse_behind(self) -> None:
        """Refuse to read parameters that another process steps.

        Raises:
            UserError: If it does so.
        """
        if self.is_behind:
            raise UserError(
                f'{self}: its branches are stepped in another process and out of date in this '
                'one: call SqueezedTraining.consolidate() in all processes first'
            )

    def _watch_leaf(self) -> None:
        def note(_):
            self.has_gradient = True

        leaf = self._parameters['weight']
        trained = leaf.requires_grad
        # A frozen one may be trained later, and refuses hooks now.
        leaf.requires_grad_(True).register_post_accumulate_grad_hook(note)
        leaf.requires_grad_(trained)

    def gives_gradients(self) -> bool:
        """Whether a graph back to the parameters is wanted, outside of squeezed mode."""
        if not torch.is_grad_enabled() or self._is_frozen():
            return False
        # A step may follow that no version counter shows, as a fused optimizer's.
        self._gave_gradients = True
        self.held.outdate()
        return True

    def _present_weight(self, memory_format: torch.memory_format) -> Tensor:
        """The kernel outside of squeezed mode, in a memory format."""
        if self.gives_gradients():
            return self._kernel_in(memory_format)
        # A fused optimizer may be about to step, or have stepped, parameters that have a gradient.
        may_be_stepped = any(t.is_leaf and t.grad is not None for t in tensors_in(self.kernel))
        held = self.held
        if held.is_fresh and not may_be_stepped and memory_format == held.memory_format:
            return held.tensor
        # No inference tensor, even if asked for under inference_mode: a later backward pass to the
        # input may need it.
        with torch.inference_mode(False), torch.no_grad():
            kernel = self._kernel_in(memory_format)
        if may_be_stepped:
            return kernel
        if (self.training or self._gave_gradients) and not self._is_frozen():
            return kernel
        held.hold(kernel, Snapshot.of(self.kernel), memory_format)
        return kernel

    def _kernel_in(self, memory_format: torch.memory_format) -> Tensor:
        kernel = self.squeeze().to(self._sample().dtype)
        if memory_format == torch.channels_last:
            return kernel.contiguous(memory_format=memory_format)
        return in_order(kernel)

    def _sample(self) -> Tensor:
        """A parameter of the kernel, for its device and dtype."""
        return next(tensors_in(self.kernel))

    def _is_frozen(self) -> bool:
        return not any(tensor.requires_grad for tensor in tensors_in(self.kernel))

    @property
    def is_replica(self) -> bool:
        """Whether it is a replica that DataParallel made for one pass, on tensors lent to it."""
        return self.__dict__.get('_is_replica', False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        if self._mode == 'squeezed':
            if 'weight' not in self._parameters:
                self._refuse_other_leaf()  # of a parametrization, for one
            weight = self.weight
        elif is_traced() or self.is_replica:
            weight = self._kernel_in(_format_of(x))
        else:
            self.settle()
            # A convolution answers in the format of its weight, which should not decide it.
            weight = self.weight if type(self) is nn.Conv2d else self._present_weight(_format_of(x))
        return GeneratedConv2d._conv_forward(self, x, weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The name is nn.Conv2d's: mmcv's and MMEngine's conv-BN evaluation call it.
        return conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def train(self, mode: bool = True):
        stays_in_training = mode and self.training
        super().train(mode)
        if not (stays_in_training or self.__dict__.get('_holds_through_modes', True)):
            # Values written through `.data` leave no trace (MMEngine's EMA swap does it); whoever
            # does so goes through train() or eval() next.
            self.held.outdate()
            self._gave_gradients = False
            self.refresh()
        return self

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        if type(self) is not nn.Conv2d:
            self.refresh()
        return self

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        self.refuse_behind()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.__dict__.get('_mode') == 'squeezed':
            destination.pop(f'{prefix}weight', None)

    def _load_from_state_dict(self, state_dict, prefix: str, *args) -> None:
        # What is loaded is up to date, whoever stepped the parameters so far.
        self.is_behind = False
        leaf = self._parameters.pop('weight', None)
        try:
            super()._load_from_state_dict(state_dict, prefix, *args)
        finally:
            if leaf is not None:
                self._parameters['weight'] = leaf
        self.held.drop()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self._mode == 'squeezed':
            # Copies come without gradients.
            self.has_gradient = False
            self._watch_leaf()
            self.refresh()

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.bias is None:
            text += ', bias=False'
        mode = self.__dict__.get('_mode', 'online')
        return text if mode == 'online' else f'{text}, mode={mode!r}'


#: What to do where a training loop knows nothing of squeezed mode.
TRAINING_ADVICE = (
    "train it with mmorepa.SqueezedTraining, or OREPAOptimWrapperConstructor, or in mode='online'"
)


def tensors_in(kernel: nn.Module) -> Iterator[Tensor]:
    """The parameters of a kernel; where a wrapper has made plain attributes of them, those."""
    parameters = kernel.parameters()
    first = next(parameters, None)
    if first is not None:
        yield first
        yield from parameters
        return
    for module in kernel.modules():
        for name in (*getattr(module, 'names', ()), 'scale'):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                yield tensor


def _format_of(x: Tensor) -> torch.memory_format:
    if torch._C._are_functorch_transforms_active():  # vmap does not tell
        return torch.contiguous_format
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


@contextlib.contextmanager
def holding_weights(model: nn.Module) -> Iterator[None]:
    """Let ``model.train()`` and ``model.eval()`` outdate no weight that a block holds.

    It is for a ``train()`` that changes modes back and forth and no values, as those of the
    libraries' backbones with frozen stages.
    """
    blocks = [module for module in model.modules() if isinstance(module, GeneratedConv2d)]
    for block in blocks:
        block._holds_through_modes = True
    try:
        yield
    finally:
        for block in blocks:
            block._holds_through_modes = False
