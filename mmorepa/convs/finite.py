"""Which layer of a model has values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .generated import GeneratedConv2d
from .reparam import ReparamConv2d

#: What a kernel is called that overflows before its parameters do.
GENERATED = 'the kernel generated of finite parameters'


def layers(model: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by name, in the order it holds them; a block is one module.

    Args:
        model (nn.Module): Any model.
        prefix (str): Its own name.

    Yields:
        tuple[str, nn.Module]: Name and module, ``model`` itself first.
    """
    yield prefix, model
    if not isinstance(model, ReparamConv2d):
        for name, child in model.named_children():
            yield from layers(child, f'{prefix}.{name}' if prefix else name)


def fault_of(layer: nn.Module, statistics: bool = True) -> str:
    """What of a layer is not finite, in words; empty if nothing is.

    Looked at are its own parameters, running statistics and, of a block whose kernel is
    generated, that kernel, which overflows before its parameters do. Other buffers may hold an
    infinity on purpose, as masks do.

    Args:
        layer (nn.Module): One that :func:`layers` yields.
        statistics (bool): Whether running statistics count. Defaults to True.
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
        # The last one to be named: it follows from the others.
        tensors['the kernel' if layer.is_behind else GENERATED] = tensors.pop('weight')
    # One answer for the layer first: on a GPU each is waited for.
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
    """The first layer of a model, in the order it holds them, that is not finite; else empty.

    Args:
        model (nn.Module): Any model.
        statistics (bool): Whether running statistics count. Defaults to True.

    Returns:
        str: Its name, and in brackets what of it is not finite.
    """
    for name, layer in layers(model):
        if fault := fault_of(layer, statistics):
            return f'{name or type(layer).__name__} ({fault})'
    return ''


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all values of a tensor are finite: a boolean tensor without dimensions."""
    return torch.isfinite(tensor).all()


def _count(tensor: Tensor) -> str:
    return f'{(~torch.isfinite(tensor)).sum().item()} of {tensor.numel()} values'
