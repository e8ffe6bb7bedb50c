"""Finding the layer of a model that has values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .generated import GeneratedConv2d
from .reparam import ReparamConv2d

#: Whose lowest and highest values :meth:`torch.Tensor.aminmax` finds.
EXTREMES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: The name of a kernel that overflows before its parameters do.
GENERATED = 'the kernel generated of finite parameters'


def layers(model: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by name, in the order in which it holds them. A block is one module.

    Args:
        model (nn.Module): Any model.
        prefix (str): The name of ``model`` itself.

    Yields:
        tuple[str, nn.Module]: Name and module, first of ``model`` itself.
    """
    yield prefix, model
    if not isinstance(model, ReparamConv2d):
        for name, child in model.named_children():
            yield from layers(child, f'{prefix}.{name}' if prefix else name)


def fault_of(layer: nn.Module, statistics: bool = True) -> str:
    """Which tensor of a layer is not finite, in words; empty if all are finite.

    The function checks the layer's own parameters and running statistics. For a block whose kernel
    is generated it also checks that kernel, which overflows before its parameters do. Other
    buffers are not checked, because they may hold an infinity on purpose, as masks do.

    Args:
        layer (nn.Module): A layer that :func:`layers` yields.
        statistics (bool): Whether to check running statistics. Defaults to True.
    """
    is_block = isinstance(layer, ReparamConv2d)
    tensors = dict(layer.named_parameters(recurse=is_block))
    for name, part in layer.named_modules() if is_block else [('', layer)]:
        if statistics and isinstance(part, _NormBase) and part.track_running_stats:
            for key in ('running_mean', 'running_var'):
                tensors[f'{name}.{key}'.lstrip('.')] = getattr(part, key)
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    is_squeezed = isinstance(layer, GeneratedConv2d) and layer.mode == 'squeezed'
    if is_squeezed:
        # The kernel comes last, because it is computed from the others.
        tensors['the kernel' if layer.is_behind else GENERATED] = tensors.pop('weight')
    # First one answer for the whole layer: on a GPU each answer is a synchronisation.
    flags = [is_finite(tensor) for tensor in tensors.values()]
    if flags and not torch.stack(flags).all():
        name = next(name for name, flag in zip(tensors, flags) if not flag)
        return f'{name}, {_count(tensors[name])}'
    if isinstance(layer, GeneratedConv2d) and not is_squeezed:
        with torch.no_grad():
            kernel = layer.squeeze().to(next(layer.parameters()).dtype)
        if not is_finite(kernel):
            return f'{GENERATED}, {_count(kernel)}'
    return ''


def first_fault(model: nn.Module, statistics: bool = True) -> str:
    """The first layer that is not finite, in the order in which a model holds its layers.

    Args:
        model (nn.Module): Any model.
        statistics (bool): Whether to check running statistics. Defaults to True.

    Returns:
        str: The layer's name, and in brackets which tensor of it is not finite. Empty if all layers
        are finite.
    """
    for name, layer in layers(model):
        if fault := fault_of(layer, statistics):
            return f'{name or type(layer).__name__} ({fault})'
    return ''


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all values of a tensor are finite: a boolean tensor without dimensions."""
    if tensor.dtype in EXTREMES and tensor.numel():
        # A NaN is passed on. On a CPU this is much faster than the line below.
        tensor = torch.stack(tensor.aminmax())
    return torch.isfinite(tensor).all()


def _count(tensor: Tensor) -> str:
    return f'{(~torch.isfinite(tensor)).sum().item()} of {tensor.numel()} values'
