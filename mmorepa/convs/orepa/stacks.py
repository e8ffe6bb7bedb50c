"""Processing blocks of equal geometry together, so that operations do not grow with depth.

A block of O output channels and g groups consists of pieces of u output channels, each with the w
input channels of its group, see :mod:`mmorepa.convs.orepa.fast`. Blocks that agree in k, g and w
are stacked along their output channels, even if O differs: u divides the channels of all of them.
Tensors that the output channels of a group share are then looked up for each piece.

Stacking needs no copies in a step: the parameters and leaves of the blocks become views of the
stack's tensors, and the gradients are views of one tensor too.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from .block import BranchSum
from .branches import Branch
from .fast import Terms, add_up, fast_of, pull_back


def stack_key(block: BranchSum, leaf: Tensor | None = None) -> Hashable:
    """A key that is equal for blocks that can be stacked.

    Args:
        block (BranchSum): The block.
        leaf (Tensor, optional): Its leaf, which keeps its memory format, because kernels are sent
            as they lie in memory. None for a part of a larger kernel.
    """
    branches = [
        (name, type(branch), branch.scale is None) for name, branch in block.named_children()
    ]
    sample = next(block.children())
    shared = [
        tuple(tensor.shape)
        for branch in block.children()
        for name, tensor in branch.tensors().items()
        if name in branch.shared
    ]
    tensor = next(block.parameters())
    return (
        *branches, *shared, sample.kernel_size, sample.groups, sample.width,
        tensor.dtype, tensor.device, leaf is not None and is_channels_last(leaf),
    )  # fmt: skip


def is_channels_last(kernel: Tensor) -> bool:
    """Whether a kernel, (O, I/g, k, k), lies in memory in channels_last and in no other order."""
    is_last = kernel.is_contiguous(memory_format=torch.channels_last)
    return is_last and not kernel.is_contiguous()


class Stack:
    """Several blocks with the same :func:`stack_key`.

    Args:
        blocks (Sequence[BranchSum]): The blocks. Their parameters become views.
        leaves (Sequence[nn.Parameter | None]): The leaf of each block, (O, I/g, k, k), which
            becomes a view as well. None for a block whose kernel is a part of a larger one.

    Attributes:
        kernels (list[Tensor]): The kernel of each block, (O, I/g, k, k). These are views that
            :meth:`generate` writes to, and the data of the leaves.
    """

    def __init__(self, blocks: Sequence[BranchSum], leaves: Sequence[nn.Parameter | None]):
        self.blocks = list(blocks)
        self.leaves = list(leaves)
        sample = next(self.blocks[0].children())
        self.groups, self.taps, self.width = sample.groups, sample.kernel_size**2, sample.width
        self.channels = [next(block.children()).out_channels for block in self.blocks]
        heights = [channels // self.groups for channels in self.channels]
        self.height = math.gcd(*heights)
        repeats = [h // self.height for h in heights for _ in range(self.groups)]
        self.pieces = sum(repeats)
        #: The convolution that each piece belongs to; None if every convolution is one piece.
        self.piece_of = None
        if self.pieces > len(repeats):
            device = next(self.blocks[0].parameters()).device
            self.piece_of = torch.arange(len(repeats)).repeat_interleave(torch.tensor(repeats))
            self.piece_of = self.piece_of.to(device)
        self._stack_parameters()
        self._stack_leaves()

    def _stack_parameters(self) -> None:
        #: The stacked parameters of all blocks, by branch and name.
        self.tensors: dict[tuple[str, str], Tensor] = {}
        #: The constants for each piece, by branch and name.
        self._constants: dict[tuple[str, str], Tensor] = {}
        for name, branch in self.blocks[0].named_children():
            for key in branch.tensors():
                own = [getattr(block, name).tensors()[key] for block in self.blocks]
                put_together = torch.stack if key in branch.group_dims else torch.cat
                stacked = put_together([tensor.detach() for tensor in own])
                if key in branch.constant_names:
                    self._constants[name, key] = self._pieces(name, key, stacked).clone()
                    continue
                self.tensors[name, key] = stacked
                for parameter, view in zip(own, self._split(name, key, stacked)):
                    parameter.data = view
            for key, constant in branch.stacked_constants().items():
                constants = torch.cat([constant] * len(self.blocks))
                self._constants[name, key] = self._pieces(name, key, constants)
        self._addresses = [p.data_ptr() for block in self.blocks for p in block.parameters()]

    def _stack_leaves(self) -> None:
        sample = next(self.blocks[0].parameters())
        size = math.isqrt(self.taps)
        shape = sum(self.channels), self.width, size, size
        leaves = [leaf for leaf in self.leaves if leaf is not None]
        is_last = any(map(is_channels_last, leaves))
        self._kernels = torch.empty(
            shape,
            dtype=sample.dtype,
            device=sample.device,
            memory_format=torch.channels_last if is_last else torch.contiguous_format,
        )
        self.kernels = list(self._kernels.split(self.channels))
        for leaf, kernel in zip(self.leaves, self.kernels):
            if leaf is not None:
                kernel.copy_(leaf.detach())
                leaf.data = kernel
        self._addresses += [leaf.data_ptr() for leaf in leaves]

    @property
    def is_whole(self) -> bool:
        """Whether parameters and leaves are still views of the stack. Moving a module ends this."""
        tensors = [p for block in self.blocks for p in block.parameters()]
        tensors += [leaf for leaf in self.leaves if leaf is not None]
        return [tensor.data_ptr() for tensor in tensors] == self._addresses

    @torch.no_grad()
    def generate(self) -> None:
        """Generate the kernels of the present parameters and write them to :attr:`kernels`."""
        target = self._kernels.flatten(2).transpose(1, 2).unflatten(0, (self.pieces, -1))
        add_up(self._terms(), target, in_passes=False)

    @torch.no_grad()
    def pull_back(self, gradients: Sequence[Tensor]) -> None:
        """Set the gradients of the parameters, given those of the kernels.

        Args:
            gradients (Sequence[Tensor]): The gradient of each block's kernel, (O, I/g, k, k).
        """
        rows = torch.cat([g.flatten(2).transpose(1, 2) for g in gradients])
        found, pieces = self._room()
        wanted: dict[str, dict[str, Tensor]] = {}
        for (name, key), gradient in found.items():
            piece = pieces.get((name, key))
            own = self._all(name, key, gradient) if piece is None else piece
            wanted.setdefault(name, {})[key] = own
        grad = rows.unflatten(0, (self.pieces, -1))
        pull_back(self._terms(), grad, self._with_ways(wanted), in_passes=False)
        for (name, key), piece in pieces.items():
            self._collect(name, key, found[name, key], piece)
        for (name, key), gradient in found.items():
            for block, own in zip(self.blocks, self._split(name, key, gradient)):
                getattr(getattr(block, name), key).grad = own

    def _room(self) -> tuple[dict[tuple[str, str], Tensor], dict[tuple[str, str], Tensor]]:
        """Allocate the gradients of all stacked tensors, and temporary ones for each piece.

        The second dict has only those that must be summed over pieces, or moved, to give the first.
        """
        looked_up = [(n, key) for n, key in self.tensors if self._is_looked_up(n, key)]
        shapes = {('all', *key): self.tensors[key].shape for key in looked_up}
        # These are added to, so they start at zero.
        zeros = sum(map(math.prod, shapes.values()))
        for key, tensor in self.tensors.items():
            shapes.setdefault(('all', *key), tensor.shape)
        for name, key in looked_up:
            shape = self._all(name, key, self.tensors[name, key]).shape
            shapes['piece', name, key] = (self.pieces, *shape[1:])
        sizes = list(map(math.prod, shapes.values()))
        room = next(iter(self.tensors.values())).new_empty(sum(sizes))
        if zeros:
            room[:zeros].zero_()
        views = {
            key: own.view(shape) for own, (key, shape) in zip(room.split(sizes), shapes.items())
        }
        return tuple(
            {(name, key): view for (kind, name, key), view in views.items() if kind == wanted}
            for wanted in ('all', 'piece')
        )

    def _is_looked_up(self, name: str, key: str) -> bool:
        """Whether each piece has its own copy of a shared tensor, not a view of the stacked one."""
        is_moved = self.piece_of is not None or self._moves_groups(name, key)
        return is_moved and key in self._branch(name).shared

    def _moves_groups(self, name: str, key: str) -> bool:
        """Whether the groups of several blocks cannot follow each other without a copy."""
        is_inside = key in self._branch(name).group_dims
        return is_inside and self.groups > 1 and len(self.blocks) > 1

    def _branch(self, name: str) -> Branch:
        return getattr(self.blocks[0], name)

    def _terms(self) -> Terms:
        own: dict[str, dict[str, Tensor]] = {}
        for (name, key), tensor in self.tensors.items():
            own.setdefault(name, {})[key] = self._pieces(name, key, tensor)
        for (name, key), tensor in self._constants.items():
            own[name][key] = tensor
        return self._with_ways(own)

    def _with_ways(self, own: dict[str, dict[str, Tensor]]) -> Terms:
        return {name: (fast_of(type(self._branch(name))), own[name]) for name in own}

    def _split(self, name: str, key: str, stacked: Tensor) -> Sequence[Tensor]:
        """Views of a stacked tensor, one for each block."""
        if key in self._branch(name).group_dims:
            return stacked.unbind()
        if key in self._branch(name).shared:
            return stacked.chunk(len(self.blocks))
        return stacked.split(self.channels)

    def _by_group(self, name: str, key: str, stacked: Tensor) -> Tensor:
        """A view of a tensor (n, ...) with its groups in an inner dimension as (n, g, ...)."""
        dim = 1 + self._branch(name).group_dims[key]
        return stacked.unflatten(dim, (self.groups, -1)).movedim(dim, 1)

    def _all(self, name: str, key: str, stacked: Tensor) -> Tensor:
        """A stacked tensor as (s, u, ...) by pieces, or by convolutions if it is shared."""
        branch = self._branch(name)
        if key in branch.group_dims:
            return self._by_group(name, key, stacked).flatten(0, 1)
        is_shared = key in branch.shared
        groups = self.groups * len(self.blocks) if is_shared else self.pieces
        return branch.view(key, stacked, groups)

    def _pieces(self, name: str, key: str, stacked: Tensor) -> Tensor:
        """A stacked tensor as (s, ...) by pieces; shared tensors are looked up for each piece."""
        found = self._all(name, key, stacked)
        if self.piece_of is None or key not in self._branch(name).shared:
            return found
        if key in self._branch(name).group_dims:
            # Input channels first in memory, as a batched product over the rest needs them.
            return found.movedim(-1, 1).index_select(0, self.piece_of).movedim(1, -1)
        return found.index_select(0, self.piece_of)

    def _collect(self, name: str, key: str, stacked: Tensor, pieces: Tensor) -> None:
        """Sum ``pieces`` over the pieces of each convolution, into a stacked tensor."""
        if not self._moves_groups(name, key):
            self._all(name, key, stacked).index_add_(0, self.piece_of, pieces)
            return
        if self.piece_of is not None:
            total = pieces.new_zeros(self.groups * len(self.blocks), *pieces.shape[1:])
            pieces = total.index_add_(0, self.piece_of, pieces)
        by_group = self._by_group(name, key, stacked)
        by_group.copy_(pieces.unflatten(0, (len(self.blocks), -1)))
