"""Loading a plain network's state dict into a model with blocks, which imitate convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..blocks.normed import AbsorbedNorm, NormedConv2d
from ..reparam import ReparamConv2d
from .pairs import conv_norm_pairs


def imitating(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, ReparamConv2d]:
    """The blocks that imitate a plain convolution when a state dict is loaded, by name.

    Args:
        model (nn.Module): A model with blocks in training form.
        state_dict (Mapping[str, Tensor]): A state dict with the model's names, in which blocks may
            be plain convolutions.
    """
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, ReparamConv2d) and module.is_plain_in(state_dict, _dotted(name))
    }


def known_names(model: nn.Module) -> set[str]:
    """All names that a model understands in a state dict: its own and those of the plain model."""
    names = set(model.state_dict())
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ReparamConv2d):
            names |= {f'{_dotted(name)}weight', f'{_dotted(name)}bias'}
        elif isinstance(module, AbsorbedNorm):
            names |= {f'{_dotted(name)}{key}' for key in module.restored().state_dict()}
    return names


def wanted(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a state dict must have if some of its convolutions are plain.

    Args:
        model (nn.Module): A model with blocks in training form.
        state_dict (Mapping[str, Tensor]): The state dict. It says which convolutions are plain.

    Returns:
        dict[str, Tensor]: Tensors of the right shapes and dtypes by name. Their values have no
        meaning.
    """
    return dict(_wanted(model, state_dict, ''))


def _wanted(module: nn.Module, state_dict, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, ReparamConv2d) and module.is_plain_in(state_dict, prefix):
        shape = module.out_channels, module.in_channels // module.groups, *module.kernel_size
        yield f'{prefix}weight', next(module.parameters()).new_empty(shape, device='meta')
        if module._parameters.get('bias') is not None:
            yield f'{prefix}bias', module.bias
        return
    if isinstance(module, AbsorbedNorm):
        if any(key.startswith(prefix) for key in state_dict):
            for name, tensor in module.restored().state_dict().items():
                yield f'{prefix}{name}', tensor
        return
    children = tuple(f'{name}.' for name in module._modules)
    for name, tensor in module.state_dict().items():
        if not name.startswith(children):
            yield f'{prefix}{name}', tensor
    for name, child in module._modules.items():  # also those that have several names
        if child is not None:
            yield from _wanted(child, state_dict, f'{prefix}{name}.')


def without_biases(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the biases of convolutions that have none in the model.

    Caffe's networks, such as ``open-mmlab://detectron/resnet50_caffe``, have a bias in front of
    each BatchNorm. It moves into the running mean, which keeps the function.

    Args:
        model (nn.Module): Any model.
        state_dict (Mapping[str, Tensor]): A state dict with the model's names.

    Returns:
        dict[str, Tensor]: Without the biases whose BatchNorm is in the state dict too.
    """
    found = dict(state_dict)
    names = {id(module): _dotted(name) for name, module in model.named_modules()}
    if not any(
        isinstance(module, nn.Conv2d)
        and module._parameters.get('bias') is None
        and f'{names[id(module)]}bias' in found
        for module in model.modules()
    ):
        return found
    for pair in conv_norm_pairs(model):
        prefix = names[id(pair.parent)]
        bias, mean = f'{prefix}{pair.conv_name}.bias', f'{prefix}{pair.norm_name}.running_mean'
        if pair.conv._parameters.get('bias') is None and bias in found and mean in found:
            if found[bias].shape == found[mean].shape:
                found[mean] = found[mean] - found.pop(bias)
    return found


def refuse_folded(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse the state dict of a deploy form before any of it is loaded.

    Args:
        model (nn.Module): A model with blocks in training form.
        state_dict (Mapping[str, Tensor]): A state dict with the model's names, in which blocks may
            be plain convolutions.

    Raises:
        UserError: If it has a bias where the plain network has none, or lacks a BatchNorm.
    """
    plain = imitating(model, state_dict).values()
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = _dotted(name)
        if isinstance(module, ReparamConv2d):
            module.refuse_folded_bias(state_dict, prefix)
        elif isinstance(module, AbsorbedNorm) and module.block in plain:
            if not any(key.startswith(prefix) for key in state_dict):
                module.block.refuse_folded(f'no {prefix}weight')


@torch.no_grad()
def plain_reference(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with the values of a state dict, and plain convolutions where it has them.

    Args:
        model (nn.Module): A model with blocks in training form.
        state_dict (Mapping[str, Tensor]): A state dict that fits :func:`wanted`.
    """
    found = imitating(model, state_dict)
    copied = copy.deepcopy(model)
    for name, block in found.items():
        weight = state_dict[f'{name}.weight']
        bias = state_dict.get(f'{name}.bias')
        conv = block.plain(weight, bias)
        _replace(copied, name, conv)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AbsorbedNorm) and isinstance(module.block, NormedConv2d):
            if module.block in found.values():
                sample = next(module.block.parameters())
                _replace(copied, name, module.restored().to(sample))
    copied.load_state_dict(state_dict, strict=False)
    return copied


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition('.')
    model.get_submodule(parent)._modules[last] = module


def _dotted(name: str) -> str:
    return f'{name}.' if name else ''
