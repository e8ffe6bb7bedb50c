"""Looking at state dicts, and comparing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from being loaded, on one line; nothing if nothing does.

    Names and shapes have to be the same. Of dtypes, any floating-point one will do for any other,
    as torch converts them, and for integers, which are BatchNorm's counters; integers will not do
    for floating point, as they would be quantized weights without their scale.
    """
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    shared = [key for key in wanted if key in found]
    reshaped = [key for key in shared if wanted[key].shape != found[key].shape]
    retyped = [key for key in shared if not _converts(found[key].dtype, wanted[key].dtype)]
    parts = []
    if missing:
        parts.append(f'{len(missing)} keys missing, first {missing[0]}')
    if unexpected:
        parts.append(f'{len(unexpected)} keys unexpected, first {one_line(unexpected[0])}')
    if reshaped:
        key = reshaped[0]
        parts.append(
            f'{len(reshaped)} shapes differ, first {key} with {tuple(found[key].shape)} '
            f'where {tuple(wanted[key].shape)} is wanted'
        )
    if retyped:
        key = retyped[0]
        parts.append(
            f'{len(retyped)} dtypes differ, first {key} with {found[key].dtype} '
            f'where {wanted[key].dtype} is wanted'
        )
    return '; '.join(parts)


def unusable(state_dict: Any, needs_data: bool = True) -> str:
    """Why something is no state dict of dense tensors with names, on one line; else empty.

    Args:
        state_dict (Any): Whatever stands in the place of one.
        needs_data (bool): False lets tensors pass that have shapes alone. Defaults to True.
    """
    if not isinstance(state_dict, Mapping):
        return f'a {type(state_dict).__name__} in the place of a state_dict'
    if not state_dict:
        return 'no tensors'
    for key, value in state_dict.items():
        if not isinstance(key, str):
            return f'the key {one_line(repr(key))}, which is no name'
        if not isinstance(value, Tensor):
            return f'a {type(value).__name__} under {one_line(key)}, which is no tensor'
        fault = _fault(value)
        if not fault and needs_data and value.is_meta:
            fault = 'a tensor without data'
        if fault:
            return f'{fault} under {one_line(key)}, wanted a dense one'
    return ''


def with_counters(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``found``, with BatchNorms' counters at zero where it lacks them, as old files do."""
    return {
        **{
            key: torch.zeros_like(tensor, device='cpu')
            for key, tensor in wanted.items()
            if key.endswith('num_batches_tracked')
        },
        **found,
    }


def one_line(text: str, longest: int = 80) -> str:
    """Text out of a file, as a message can show it: on one line, and not too long."""
    text = ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).split()))
    return text if len(text) <= longest else f'{text[:longest]}…'


def _fault(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return 'a quantized tensor'
    if tensor.is_nested:
        return 'a nested tensor'
    if tensor.layout != torch.strided:
        return 'a sparse tensor'
    return ''


def _converts(found: torch.dtype, wanted: torch.dtype) -> bool:
    if wanted.is_complex or torch.bool in (found, wanted):
        return found == wanted
    return not found.is_complex and (found.is_floating_point or not wanted.is_floating_point)
