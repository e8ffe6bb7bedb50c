"""Comparing state dicts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from being loaded, on one line; nothing if nothing does."""
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    parts = []
    if missing:
        parts.append(f'{len(missing)} keys missing, first {missing[0]}')
    if unexpected:
        parts.append(f'{len(unexpected)} keys unexpected, first {unexpected[0]}')
    if reshaped:
        key = reshaped[0]
        parts.append(
            f'{len(reshaped)} shapes differ, first {key} with {tuple(found[key].shape)} '
            f'where {tuple(wanted[key].shape)} is wanted'
        )
    return '; '.join(parts)
