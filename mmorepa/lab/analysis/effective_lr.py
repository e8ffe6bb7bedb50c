"""How far one SGD step moves a generated kernel, next to a plain convolution's.

A block generates its kernel W from parameters theta; J is the Jacobian dW/dtheta and G = dL/dW
the gradient at the kernel. By the chain rule the parameters see Jt G (Jt is J transposed). With L
the learning rates of the parameters, a diagonal matrix, one SGD step changes theta by -L Jt G, and
the kernel, to first order in the rates, by::

    dW = -M G,    M = J L Jt

A plain convolution with the same kernel and the same gradient, in its place under the same config,
has one rate l and changes by -l G. These numbers compare the two:

- gain, |M G| / (l |G|): how many times as far the kernel moves.
- along, <M G, G> / (l |G|^2): the part of it along the gradient, which is what lowers the loss.
  It is never negative, since M is positive semidefinite.
- cosine of the angle between M G and G: along / gain.

For W = s V, one number s and a weight V of one channel, M G is l (s^2 G + <V, G> V), so that the
gain is s^2 or more. In a deep linear stem each factor is multiplied by all the others, and its
gain grows with their sizes.

M is linear in the rates. So a stem of gain g under the multiplier c has the gain 1 under c / g,
and whatever gain is wanted under that many times c / g. This is our own derivation; the paper's
rate for the stem was never published.

A BatchNorm behind the kernel makes the network blind to the size of W, and G is the smaller the
larger W is. Kernels of unlike sizes are therefore compared by their relative step:

- relative, |M G| / |W|: the length of the step, over the kernel's. A plain network, trained from
  other weights, has such a step as well: :func:`measure_plain`.

Left out are momentum, weight decay, and terms of second order in the rates.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from ...config_types import is_of_type
from ...convs import OREPAConv2d, squeeze
from ...convs.blocks.branch_kernels import kind_of
from ...engine.quiet import quiet_mmengine
from ...engine.squeezed_step import trained_through_branches
from ...errors import UserError

#: The numbers of a comparison.
NUMBERS = ('gain', 'along', 'cosine', 'relative')


@dataclass(frozen=True)
class Layer:
    """One generated kernel and how a step moves it; a number a batch.

    A number is NaN where the gradient at the kernel is zero. A frozen kernel has none.

    Attributes:
        name (str): The block's name in the model.
        kind (str): ``'stem'`` for a deep linear stem, else the kernel's size as ``'3x3'``.
        shape (tuple[int, ...]): The kernel's, (O, I/g, k, k).
        frozen (bool): Whether the optimizer leaves it alone.
        gain (list[float]): See the module's text, as for the next three.
        along (list[float]): See above.
        cosine (list[float]): See above.
        relative (list[float]): See above.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    frozen: bool
    gain: list[float] = field(default_factory=list)
    along: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)

    def spread(self, number: str) -> tuple[float, float, float]:
        """Lowest, median and highest over the batches, NaN left out; all NaN if none is left."""
        values = [value for value in getattr(self, number) if not math.isnan(value)]
        return (min(values), median(values), max(values)) if values else (math.nan,) * 3


def measure(model: nn.Module, batches: Iterable, optim_wrapper: dict) -> list[Layer]:
    """Measure every block of a model.

    The model runs in training mode, as in MMEngine's ``train_step``, and is left as it was found:
    parameters, gradients, buffers and modes.

    Args:
        model (nn.Module): An MMEngine ``BaseModel`` with blocks in training form.
        batches (Iterable): What a train dataloader gives: what the data preprocessor takes.
        optim_wrapper (dict): The config of the optimizer wrapper. Rates are those it names,
            before any schedule.

    Returns:
        list[Layer]: In the model's order.

    Raises:
        UserError: If the optimizer is not SGD, or the model has no block.
    """
    blocks = blocks_of(model)
    rates = learning_rates(model, optim_wrapper)
    plain = squeeze(model, inplace=False)
    of_plain = learning_rates(plain, optim_wrapper)
    plain_rates = {name: of_plain.get(id(plain.get_submodule(name).weight), 0) for name in blocks}
    layers = {
        name: Layer(name, kind_of(block), tuple(block.squeeze().shape), plain_rates[name] == 0)
        for name, block in blocks.items()
    }
    with left_as_found(model):
        model.train()
        for batch in batches:
            for name, gradient in kernel_gradients(model, batch).items():
                if layers[name].frozen:
                    continue
                block = blocks[name]
                own = {key: rates.get(id(p), 0) for key, p in block.kernel.named_parameters()}
                compared = compare(
                    step=kernel_step(block.kernel, gradient, own),
                    plain_step=plain_rates[name] * gradient.double(),
                    kernel=block.squeeze().detach(),
                )
                for number, value in zip(NUMBERS, compared):
                    getattr(layers[name], number).append(value)
    return list(layers.values())


def measure_plain(model: nn.Module, batches: Iterable, optim_wrapper: dict) -> dict[str, float]:
    """The relative step of every plain convolution of a model, ``l |G| / |W|``.

    The model runs as in :func:`measure`, and is left as it was found.

    Args:
        model (nn.Module): An MMEngine ``BaseModel``.
        batches (Iterable): See :func:`measure`.
        optim_wrapper (dict): See :func:`measure`.

    Returns:
        dict[str, float]: The median over the batches by the name of the convolution. Frozen ones
        and those that get no gradient are left out.

    Raises:
        UserError: If the optimizer is not SGD.
    """
    rates = learning_rates(model, optim_wrapper)
    weights = {
        name: module.weight
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and rates.get(id(module.weight))
    }
    steps = {name: [] for name in weights}
    with left_as_found(model):
        model.train()
        for batch in batches:
            model.zero_grad()
            backward(model, batch)
            for name, weight in weights.items():
                if weight.grad is not None:
                    length = rates[id(weight)] * weight.grad.double().norm()
                    steps[name].append((length / weight.double().norm()).item())
    found = {name: median(values) for name, values in steps.items() if values}
    return {name: step for name, step in found.items() if 0 < step < math.inf}


def blocks_of(model: nn.Module) -> dict[str, OREPAConv2d]:
    """The blocks of a model by name.

    Raises:
        UserError: If there is none.
    """
    blocks = {n: block for n, block in model.named_modules() if isinstance(block, OREPAConv2d)}
    if not blocks:
        raise UserError(
            f'{type(model).__name__} has no generated kernels: wanted a model with OREPA blocks, '
            'in training form'
        )
    return blocks


def kernel_step(kernel: nn.Module, gradient: Tensor, rates: Mapping[str, float]) -> Tensor:
    """M G: minus the change of a generated kernel by one SGD step, to first order in the rates.

    Args:
        kernel (nn.Module): A generator: called with nothing, it gives a kernel (O, I/g, k, k).
        gradient (Tensor): G, the loss's gradient at that kernel, (O, I/g, k, k).
        rates (Mapping[str, float]): The learning rate of each parameter of ``kernel``, by name;
            0 for a frozen one.

    Returns:
        Tensor: (O, I/g, k, k), computed and given in float64.
    """
    parameters = {name: p.detach().double() for name, p in kernel.named_parameters()}
    buffers = {name: buffer.double() for name, buffer in kernel.named_buffers()}

    def generate(parameters):
        return torch.func.functional_call(kernel, {**parameters, **buffers}, ())

    _, pull_back = torch.func.vjp(generate, parameters)
    (gradients,) = pull_back(gradient.double())
    change = {name: rates[name] * gradient for name, gradient in gradients.items()}
    return torch.func.jvp(generate, (parameters,), (change,))[1].detach()


def compare(step: Tensor, plain_step: Tensor, kernel: Tensor) -> tuple[float, ...]:
    """The numbers that say how far a step goes.

    Args:
        step (Tensor): Of a generated kernel, of its shape.
        plain_step (Tensor): That of a plain convolution in its place.
        kernel (Tensor): The kernel.

    Returns:
        tuple[float, ...]: In the order of :data:`NUMBERS`; NaN where a length to be divided by
        is zero.
    """
    length, plain_length, size = (t.double().norm().item() for t in (step, plain_step, kernel))
    if not plain_length:
        return (math.nan,) * 4
    gain = length / plain_length
    along = (step * plain_step).sum().item() / plain_length**2
    return gain, along, along / gain if gain else math.nan, length / size if size else math.nan


def kernel_gradients(model: nn.Module, batch) -> dict[str, Tensor]:
    """The gradient of a model's training loss at each generated kernel.

    Args:
        model (nn.Module): An MMEngine ``BaseModel``, in the mode in which to run it.
        batch: What its data preprocessor takes.

    Returns:
        dict[str, Tensor]: (O, I/g, k, k) by the name of the block; zeros where the loss does not
        depend on the kernel. A block that runs several times gets the sum.
    """
    with leaf_kernels(model) as leaves:
        backward(model, batch)
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for name, leaf in leaves.items()
        }


def backward(model: nn.Module, batch) -> None:
    """The backward pass of a training loss; see :func:`kernel_gradients`."""
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
    loss, _ = model.parse_losses(losses)
    # Not autograd.grad, which checkpointed blocks (with_cp) refuse.
    loss.backward()


@contextlib.contextmanager
def leaf_kernels(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Let each block run in squeezed mode, frozen ones and those in mode ``'offline'`` too.

    Gives the leaves by the name of the block; a backward pass leaves the kernels' gradients in
    them.
    """
    blocks = blocks_of(model)
    modes = {block: block.mode for block in blocks.values()}
    trained = {p: p.requires_grad for block in blocks.values() for p in block.parameters()}
    for block in blocks.values():
        block.mode = 'squeezed'
        block.weight.requires_grad_(True)
    try:
        yield {name: block.weight for name, block in blocks.items()}
    finally:
        for block, mode in modes.items():
            block.weight.grad, block.has_gradient = None, False
            block.mode = mode
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Give a model its gradients, buffers and modes back in the end."""
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    model.zero_grad()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            buffer.copy_(value)


def learning_rates(model: nn.Module, optim_wrapper: dict) -> dict[int, float]:
    """The learning rate of each parameter, by the rules of a config.

    Args:
        model (nn.Module): Any model.
        optim_wrapper (dict): The config of the optimizer wrapper.

    Returns:
        dict[int, float]: By the ``id`` of the parameter; frozen ones are left out.

    Raises:
        UserError: If the optimizer is not SGD, or there are several.
    """
    cfg = copy.deepcopy(optim_wrapper)
    if is_of_type(cfg, 'AmpOptimWrapper'):
        # It wants a GPU, and has the same groups.
        cfg = {key: cfg[key] for key in ('optimizer', 'constructor', 'paramwise_cfg') if key in cfg}
    with trained_through_branches(model):
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    with quiet_mmengine():
        optimizer = getattr(build_optim_wrapper(model, cfg), 'optimizer', None)
    if not isinstance(optimizer, torch.optim.SGD):
        found = type(optimizer).__name__ if optimizer else 'not a single one'
        raise UserError(
            f'the optimizer of this config is {found}: the step measured here is that of SGD, '
            'choose a config with one SGD optimizer'
        )
    return {
        id(parameter): group['lr']
        for group in optimizer.param_groups
        for parameter in group['params']
        if id(parameter) in trained
    }
