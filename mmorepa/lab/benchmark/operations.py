"""Counts the operations that some work hands to a device, with what each computes and moves.

The count says how many kernels a GPU is asked for, and is the same on every machine. Work on the
meta device is counted without being done::

    with torch.device('meta'):
        network, x = build(), torch.empty(64, 3, 224, 224)
    print(count_operations(lambda: network(x)).total)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

#: Where torch keeps the operations that send.
SENDING = 'c10d'

#: Operations that make memory without values in it.
ALLOCATIONS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
#: Operations that hand nothing to the device and are no views by their schema: one is a view that
#: autograd takes for a new tensor.
FREE = {aten._unsafe_view, aten.lift_fresh}


@dataclass(frozen=True)
class Operation:
    """One operation on tensors.

    Attributes:
        name (str): As torch's dispatcher has it, without the overload: ``'aten.add'``. Those that
            send tensors to other processes begin with ``'c10d.'``.
        flops (int): Floating-point work of a convolution or a matrix product, a multiply and an
            add counting as two; 0 for all others, which wait for memory.
        bytes (int): Read and written: each tensor that comes in and each that goes out, an
            expanded one with what it has in memory. Of one that sends, those of its tensors.
        calls (int): Kernels that it takes at least: 2 for a convolution's backward pass to the
            images and the weight, else 1.
    """

    name: str
    flops: int
    bytes: int
    calls: int = 1

    @property
    def is_sent(self) -> bool:
        """Whether tensors go to other processes."""
        return self.name.startswith(f'{SENDING}.')


class Operations(list[Operation]):
    """Operations in the order in which they were handed over."""

    @property
    def total(self) -> int:
        """How many there are, what only sends left out."""
        return sum(not operation.is_sent for operation in self)

    @property
    def by_name(self) -> Counter[str]:
        """How many there are of each name, the most frequent first."""
        return Counter(dict(Counter(operation.name for operation in self).most_common()))

    @property
    def flops(self) -> int:
        """Floating-point work of all."""
        return sum(operation.flops for operation in self)

    @property
    def bytes(self) -> int:
        """Bytes read and written by all, what only sends left out."""
        return sum(operation.bytes for operation in self if not operation.is_sent)

    @property
    def sent(self) -> Counter[str]:
        """Bytes of the tensors that are sent, by the operation that sends them."""
        found: Counter[str] = Counter()
        for operation in self:
            if operation.is_sent and operation.bytes > 1:  # a barrier sends one byte
                found[operation.name.removeprefix(f'{SENDING}.').rstrip('_')] += operation.bytes
        return found


def count_operations(function: Callable[[], object], allocations: bool = False) -> Operations:
    """What ``function`` hands to the device, its backward passes included.

    Views are left out. One operation of torch's dispatcher counts as one, also where it goes over
    a list of tensors (``_foreach_add_``).

    Args:
        function (Callable[[], object]): Takes nothing; is called once.
        allocations (bool): Whether making memory without values in it counts, though it asks for
            no kernel. Defaults to False.

    Returns:
        Operations: In order.

    Example:
        >>> count_operations(lambda: torch.ones(2, 3).t() @ torch.ones(2, 3)).by_name
        Counter({'aten.ones': 2, 'aten.mm': 1})
    """
    with _Counting(FREE if allocations else FREE | ALLOCATIONS) as counting:
        function()
    return counting.operations


class _Counting(TorchDispatchMode):
    def __init__(self, free: set):
        super().__init__()
        self.free = free
        self.operations = Operations()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == SENDING:
            self.operations.append(_operation(func, args, kwargs, None))
            return out
        # What neither gives nor changes a tensor, as a comparison, asks for no kernel.
        works = func._schema.is_mutable or tensors_in(out)
        if works and not func.is_view and func.overloadpacket not in self.free:
            self.operations.append(_operation(func, args, kwargs, out))
        return out


def _operation(func, args, kwargs, out) -> Operation:
    packet = func.overloadpacket
    name = f'{func.namespace}.{packet.__name__}'
    flops, calls = 0, 1
    if packet is aten.convolution_backward:
        # Torch's own formula takes a grouped convolution for a dense one.
        gradient, images, weight = args[:3]
        calls = sum(args[-1][:2])
        transposed = args[7]
        outer = images if transposed else gradient
        flops = calls * 2 * outer.numel() * weight[0].numel()
    elif packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
    return Operation(
        name, flops, _bytes(tensors_in((args, kwargs))) + _bytes(tensors_in(out)), calls
    )


def tensors_in(tree) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        for tensor in tensors
    )
