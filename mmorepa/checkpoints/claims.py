"""What a checkpoint's pickle says of the sizes of its tensors, held against what is there.

torch takes the pickle at its word: a storage that is said to be larger than its record reaches
into whatever lies behind that in memory, and ends the process at some later moment.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import torch


def false_claim(pickled: bytes, sizes: Mapping[str, int]) -> str:
    """The first record that has another size than the pickle says; empty if all are as they say.

    Args:
        pickled (bytes): ``data.pkl`` of a file of ``torch.save``. Nothing in it is run: whatever it
            asks for, it gets an object that does nothing.
        sizes (Mapping[str, int]): Bytes by name of each record, such as ``data/0``.

    Raises:
        Exception: If it is no pickle, or one that is torn; of any kind.
    """
    reader = _Claims(io.BytesIO(pickled))
    with warnings.catch_warnings():
        # Of the types that files name storages by.
        warnings.simplefilter('ignore')
        reader.load()
    for name, size in reader.claims:
        if sizes.get(name) != size:
            return f'{name}, which is said to have {size} bytes and has {sizes.get(name, 0)}'
    return ''


class _Inert:
    """Anything that a pickle may ask for."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any):
        pass

    def __setitem__(self, key: Any, value: Any):
        pass

    def append(self, value: Any):
        """As a list has it."""

    def extend(self, values: Any):
        """As a list has it."""

    def add(self, value: Any):
        """As a set has it."""


class _Claims(pickle.Unpickler):
    """Notes the storages that a pickle refers to."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, encoding='utf-8')
        self.claims: list[tuple[str, int]] = []

    def find_class(self, module: str, name: str) -> type:
        return type(name, (_Inert,), {})

    def persistent_load(self, reference: Any) -> _Inert:
        _, kind, key, _, count = reference
        dtype = getattr(getattr(torch, kind.__name__, None), 'dtype', torch.uint8)
        self.claims.append((f'data/{key}', count * dtype.itemsize))
        return _Inert()
