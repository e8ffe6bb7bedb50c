"""A convolution whose weight is generated from its parameters in every step."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from .context import is_traced, without_autocast
from .conv2d import conv2d
from .held import Snapshot, has_memory
from .reparam import ReparamConv2d, after_loading
from .rows import in_order


class GeneratedConv2d(ReparamConv2d):
    """A convolution whose kernel is generated, and which convolves the feature map only once.

    It is linear and can be used wherever an ``nn.Conv2d`` can. Its attribute ``kernel`` is a module
    whose call returns the kernel. The parameters of that module are trained and saved; ``weight``
    is computed from them. Kernels are generated in float32 at least, also under autocast and for
    half-precision parameters.

    It takes the arguments of ``nn.Conv2d``. Subclasses add ``kernel``.

    Args:
        bias (bool): Whether to add a learnable bias, starting at zero. Defaults to True.
        mode (str): ``'online'`` generates the kernel with a graph in each forward pass that needs
            gradients. It is right under any training loop. ``'squeezed'`` makes the kernel a leaf
            of the graph, and :class:`mmorepa.SqueezedTraining` updates the parameters. Defaults to
            ``'online'``.
        options: Options of the block.

    For the other arguments see :class:`mmorepa.convs.reparam.ReparamConv2d`.

    Raises:
        UserError: As for :class:`mmorepa.convs.reparam.ReparamConv2d`, and if ``mode`` is not
            known.
    """

    options: tuple[str, ...] = ('mode',)
    #: The modes that the block supports.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_channels))
        else:
            self.register_parameter('bias', None)
        #: Whether another process updates the parameters, so that they are out of date here.
        self.is_behind = False
        #: Whether the leaf has got a gradient that was not pulled back yet.
        self.has_gradient = False
        self._gave_gradients = False
        self._holds_through_modes = False
        self._mode = 'online'
        self.add_kernel(**options)
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)
        # Squeezed mode generates the kernel, on that device and in that dtype.
        self.mode = mode
        self.register_load_state_dict_post_hook(after_loading)

    def add_kernel(self, **options) -> None:
        """Add ``kernel``, a module whose call returns the kernel, (O, I/g, k, k)."""
        raise NotImplementedError

    @property
    def mode(self) -> str:
        """How the kernel is trained, see the class. The mode can be changed at any time.

        In squeezed mode autograd and ``DistributedDataParallel`` see only the leaf ``weight``. The
        parameters of ``kernel`` do not require grad, even while they are trained. When the mode is
        changed to another one, they require grad if the leaf did.
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
            Tensor: (O, I/g, k, k), float32 or float64, in any memory format. If gradients are
            enabled, it has a graph back to the parameters.

        Raises:
            UserError: If another process updates the parameters, see
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
            UserError: If this block cannot represent the kernel.
        """
        dtype = self._sample().dtype
        self.kernel.double().imitate(kernel.double())
        self.kernel.to(dtype)

    @property
    def weight(self) -> Tensor:
        """The generated kernel, (O, I/g, k, k), in the parameters' dtype.

        In squeezed mode it is a leaf. In the other modes it has a graph back to the parameters if
        gradients are enabled and the parameters require them. For writes to it see
        :class:`mmorepa.convs.reparam.ReparamConv2d`.
        """
        if is_traced() or self.is_replica:
            return self._traced_weight()
        self.settle()
        if type(self) is nn.Conv2d:
            return self._parameters['weight']
        if self._mode == 'squeezed':
            return self._leaf()
        # Always contiguous, whatever format the last image had: tools call
        # `weight.view(out_channels, -1)`.
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
        """Refuse a leaf in place of one that was taken out, except in DataParallel's replicas.

        The gradient of such a leaf would never be pulled back.
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
            # Exporters and counters look for parameters in the state dict, and accept no other
            # tensor that requires grad.
            return leaf.data if torch.jit.is_tracing() else leaf
        return self._kernel_in(torch.contiguous_format)

    def _leaf(self) -> nn.Parameter:
        """The leaf, updated to the kernel of the present parameters.

        Raises:
            UserError: If the leaf was trained and not the parameters.
        """
        leaf = self._parameters.get('weight')
        if leaf is None:
            return self._lent_leaf()
        self._refuse_dropped_gradient()
        if self.training and not leaf.requires_grad:
            self.held.outdate()  # it may follow another network, see _present_weight
        self.refresh()
        return leaf

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the leaf of squeezed mode from the parameters, if it is out of date.

        This is called as soon as the parameters may have changed, because compilers, ``torch.func``
        and replicas read the leaf without going through :attr:`weight`.
        """
        leaf, own = self._parameters.get('weight'), self.held.tensor
        if self._mode != 'squeezed' or leaf is None or self.is_behind or self.held.is_fresh:
            return
        if leaf.is_meta:
            if any(t.is_meta for t in (*self.kernel.parameters(), *self.kernel.buffers())):
                return  # it has no values
            # load_state_dict(assign=True) has put others in the parameters' place.
            memory = torch.empty_like(leaf, device=self._sample().device)
            own = leaf = nn.Parameter(memory, requires_grad=leaf.requires_grad)
            self._parameters['weight'] = leaf
            self._watch_leaf()
        # Leave the leaf alone if torch.func.functional_call has put another one in its place, and
        # while the module moves from one device to another.
        if (own is not None and own is not leaf) or self._sample().device != leaf.device:
            return
        with torch.inference_mode(False), torch.no_grad():
            kernel = self.squeeze().to(leaf.dtype)
            # An unchanged leaf is not written to, because autograd may hold on to it.
            if not has_memory(leaf) or not torch.equal(leaf, kernel):
                leaf.copy_(kernel)
            self.hold_leaf()

    def hold_leaf(self) -> None:
        """Note, in squeezed mode, that the leaf is the kernel of the present parameters."""
        if not self.held.renew(self._parameters['weight']):
            self.held.hold(self._parameters['weight'], Snapshot.of(self.kernel))

    def _refuse_dropped_gradient(self) -> None:
        """Refuse to go on after a step that was none of the branches'.

        It may have been that of a fused optimizer, which changes no version counter.
        """
        leaf = self._parameters.get('weight')
        if self.has_gradient and leaf is not None and leaf.grad is None:
            raise UserError(
                f'{self}: the gradient of its kernel was dropped before it was pulled back to the '
                f'branches: {TRAINING_ADVICE}'
            )

    def settle(self) -> None:
        if self._mode == 'squeezed':
            self._refuse_dropped_gradient()
        # If the parameters have changed too, for example in a broadcast of everything, the leaf is
        # computed from them, and the write to it does not matter.
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
        """Refuse to read parameters that are out of date.

        Raises:
            UserError: If another process updates the parameters.
        """
        if self.is_behind:
            raise UserError(
                f'{self}: its branches are stepped in another process and out of date in this '
                'one: call SqueezedTraining.consolidate() in all processes first'
            )

    def _watch_leaf(self) -> None:
        # The collector does not see what holds such a hook: a block in it would never be freed.
        watching = weakref.ref(self)

        def note(_):
            if (block := watching()) is not None:
                block.has_gradient = True

        leaf = self._parameters['weight']
        trained = leaf.requires_grad
        # A frozen leaf may be trained later, but accepts no hooks while it is frozen.
        leaf.requires_grad_(True).register_post_accumulate_grad_hook(note)
        leaf.requires_grad_(trained)

    def gives_gradients(self) -> bool:
        """Whether a graph back to the parameters is needed, outside of squeezed mode."""
        if not torch.is_grad_enabled() or self._is_frozen():
            return False
        # The step that follows may not change any version counter, for example a fused optimizer's.
        self._gave_gradients = True
        self.held.outdate()
        return True

    def _present_weight(self, memory_format: torch.memory_format) -> Tensor:
        """The kernel outside of squeezed mode, in the given memory format."""
        if self.gives_gradients():
            return self._kernel_in(memory_format)
        # A fused optimizer may step parameters that have a gradient, or may have stepped them.
        may_be_stepped = any(t.is_leaf and t.grad is not None for t in tensors_in(self.kernel))
        held = self.held
        if held.is_fresh and not may_be_stepped and memory_format == held.memory_format:
            return held.tensor
        # This must not be an inference tensor, even under inference_mode, because a later backward
        # pass to the input may need it.
        with torch.inference_mode(False), torch.no_grad():
            kernel = self._kernel_in(memory_format)
        if may_be_stepped:
            return kernel
        # What trains may be written to in ways that nothing counts, a key encoder by its average.
        if self.training or (self._gave_gradients and not self._is_frozen()):
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
        """Whether this is a replica that DataParallel made for one pass, with borrowed tensors."""
        return self.__dict__.get('_is_replica', False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        if self._mode == 'squeezed':
            if 'weight' not in self._parameters:
                self._refuse_other_leaf()  # for example that of a parametrization
            weight = self.weight
        elif is_traced() or self.is_replica:
            weight = self._kernel_in(_format_of(x))
        else:
            self.settle()
            # A convolution returns its output in the format of its weight, so the weight takes the
            # format of the input.
            weight = self.weight if type(self) is nn.Conv2d else self._present_weight(_format_of(x))
        return GeneratedConv2d._conv_forward(self, x, weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # nn.Conv2d has a method of this name, which mmcv's and MMEngine's conv-BN evaluation call.
        return conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def train(self, mode: bool = True):
        stays_in_training = mode and self.training
        super().train(mode)
        if not (stays_in_training or self.__dict__.get('_holds_through_modes', True)):
            # Writes through `.data`, as in MMEngine's EMA swap, cannot be detected. Code that does
            # so calls train() or eval() next.
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
        # Loaded parameters are up to date, even if another process has updated them until now.
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
            # Copies have no gradients.
            self.has_gradient = False
            self._watch_leaf()
            self.refresh()

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.bias is None:
            text += ', bias=False'
        mode = self.__dict__.get('_mode', 'online')
        return text if mode == 'online' else f'{text}, mode={mode!r}'


#: Advice for training loops that do not support squeezed mode.
TRAINING_ADVICE = (
    "train it with mmorepa.SqueezedTraining, or OREPAOptimWrapperConstructor, or in mode='online'"
)


def tensors_in(kernel: nn.Module) -> Iterator[Tensor]:
    """The parameters of a kernel, or the plain attributes that a wrapper has made of them."""
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
    if torch._C._are_functorch_transforms_active():  # vmap does not tell the memory format
        return torch.contiguous_format
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


@contextlib.contextmanager
def holding_weights(model: nn.Module) -> Iterator[None]:
    """A context in which ``model.train()`` and ``model.eval()`` keep the weights that blocks hold.

    It is for a ``train()`` that changes modes back and forth but no values, such as that of the
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
