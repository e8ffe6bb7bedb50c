"""Adding up the kernels of a block's branches at little cost, and computing their gradients.

Written as the sum of the branches' formulas, a kernel takes dozens of small operations, and
autograd keeps every intermediate kernel. Here each branch adds itself to one tensor, and computes
the gradients of its parameters from the gradient of that tensor. Only the parameters are kept. On a
CPU the code processes a few output channels at a time, all branches of them, so that they stay in a
core's cache. On other devices each operation has to be launched, so it runs over all channels.

A branch works without any code in this module: :class:`FastBranch` uses its formula, and autograd
for the derivative of the formula. The branches in :data:`FAST` have a quicker way.

Kernels are (s, u, t, w), as in formulas, see :mod:`mmorepa.convs.orepa.branches`. If several blocks
are stacked (:mod:`mmorepa.convs.orepa.stacks`), ``s`` counts the convolutions of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..context import is_traced, without_autocast
from ..rows import as_kernel
from . import branches
from .branches import SEPARABLE_MULTIPLIER, Branch, plus_identity

#: How many numbers of a kernel are processed at a time on a CPU. Fewer would fit a smaller cache,
#: but gradients that all output channels share would be added to more often.
CACHED = 2**20
#: How many sums of the separable branch are held in the cache in addition.
CACHED_SUMS = 2**17


def sum_of_kernels(block: nn.Module) -> Tensor:
    """The sum of a block's scaled kernels, (O, I/g, k, k), in channels_last memory format.

    Args:
        block (nn.Module): A module whose children are branches of the same geometry.
    """
    if is_traced() or not is_fast(block):
        return by_formula(block)
    tensors = named_tensors(block)
    return _Sum.apply(block, list(tensors), *tensors.values())


def by_formula(block: nn.Module) -> Tensor:
    """:func:`sum_of_kernels` as in the paper, with the branches' formulas."""
    return reduce(torch.add, [branch() for branch in block.children()])


def is_fast(block: nn.Module) -> bool:
    """Whether the branches can be added up from their tensors.

    This is not possible if a branch has hooks, parametrizations or its own ``forward``, because
    then the branch must be called.
    """
    for branch in block.children():
        if type(branch).forward is not Branch.forward or is_parametrized(branch):
            return False
        if branch._forward_pre_hooks or branch._forward_hooks:
            return False
    return True


def named_tensors(block: nn.Module) -> dict[tuple[str, str], Tensor]:
    """The tensors of all branches of a block, by branch and name."""
    return {
        (branch_name, name): tensor
        for branch_name, branch in block.named_children()
        for name, tensor in branch.tensors().items()
    }


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, block: nn.Module, names: list[tuple[str, str]], *tensors: Tensor) -> Tensor:
        ctx.block, ctx.names = block, names
        # Constants are not saved by autograd: DDP broadcasts buffers in place between two passes,
        # which would count as a change.
        is_constant = [name in getattr(block, branch).constant_names for branch, name in names]
        ctx.constants = [t if fixed else None for t, fixed in zip(tensors, is_constant)]
        ctx.save_for_backward(*[None if fixed else t for t, fixed in zip(tensors, is_constant)])
        sample = next(block.children())
        rows = tensors[0].new_empty(sample.out_channels, sample.kernel_size**2, sample.width)
        add_up(terms_of(block, names, tensors), rows.unflatten(0, (sample.groups, -1)))
        return as_kernel(rows, sample.kernel_size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        wanted = ctx.needs_input_grad[2:]
        tensors = [c if s is None else s for s, c in zip(ctx.saved_tensors, ctx.constants)]
        # A backward pass may run under autocast, but kernels must keep their precision.
        with without_autocast(grad.device):
            if torch.is_grad_enabled():
                return None, None, *_differentiable(ctx.block, ctx.names, tensors, wanted, grad)
            found = [torch.empty_like(t) if wants else None for t, wants in zip(tensors, wanted)]
            pull_back(
                terms_of(ctx.block, ctx.names, tensors),
                kernel_rows(grad, next(ctx.block.children()).groups),
                terms_of(ctx.block, ctx.names, found),
            )
        return None, None, *found


def _differentiable(block, names, tensors, wanted, grad) -> list[Tensor | None]:
    """The gradients with a graph, for second derivatives, computed from the formula."""
    own = {'.'.join(name): tensor for name, tensor in zip(names, tensors)}

    class Formula(nn.Module):
        def __init__(self):
            super().__init__()
            self._modules = block._modules

        def forward(self) -> Tensor:
            return by_formula(self)

    kernel = torch.func.functional_call(Formula(), own, ())
    inputs = [tensor for tensor, wants in zip(tensors, wanted) if wants]
    gradients = iter(torch.autograd.grad(kernel, inputs, grad, create_graph=True))
    return [next(gradients) if wants else None for wants in wanted]


def kernel_rows(kernel: Tensor, groups: int) -> Tensor:
    """A view of a kernel (O, I/g, k, k) as (g, u, t, w)."""
    return kernel.flatten(2).transpose(1, 2).unflatten(0, (groups, -1))


def terms_of(block: nn.Module, names: list[tuple[str, str]], tensors) -> Terms:
    """The branches of a block by name, with their tensors or with the gradients of these.

    Args:
        block (nn.Module): A module whose children are branches of the same geometry.
        names (list[tuple[str, str]]): The branch of each tensor, and its name there.
        tensors (Sequence[Tensor | None]): The tensors; None for a gradient that is not needed.
    """
    own: dict[str, dict[str, Tensor]] = {}
    for (branch_name, name), tensor in zip(names, tensors):
        if tensor is not None:
            branch = getattr(block, branch_name)
            own.setdefault(branch_name, {})[name] = branch.view(name, tensor, branch.groups)
    return {name: (fast_of(type(getattr(block, name))), own[name]) for name in own}


Terms = Mapping[str, tuple['FastBranch', Mapping[str, Tensor]]]


def add_up(terms: Terms, target: Tensor, in_passes: bool | None = None) -> None:
    """Write the sum of branches' scaled kernels to ``target``.

    Args:
        terms (Terms): The branches by name, with their tensors.
        target (Tensor): (s, u, t, w), a view with any strides.
        in_passes (bool, optional): Whether to process a few output channels at a time. Defaults to
            True on a CPU and False elsewhere.
    """
    if in_passes is None:
        in_passes = goes_in_passes(target)
    # A branch whose product is as large as the kernel comes first, so that the others add to it.
    ordered = sorted(terms.values(), key=lambda term: not term[0].begins)
    for part in parts(target, in_passes):
        some = target[:, part]
        rows = some if _is_dense(some) else some.new_empty(some.shape)
        for i, (fast, tensors) in enumerate(ordered):
            fast.add(rows, i == 0, in_passes, **fast.part(tensors, part))
        if rows is not some:
            some.copy_(rows)


def pull_back(terms: Terms, grad: Tensor, wanted: Terms, in_passes: bool | None = None) -> None:
    """Write the gradients of the branches' tensors, given that of the sum of their kernels.

    Args:
        terms (Terms): The branches by name, with their tensors.
        grad (Tensor): The gradient of the sum, (s, u, t, w), a view with any strides.
        wanted (Terms): The tensors to write the gradients to. Gradients that are not in it are not
            computed.
        in_passes (bool, optional): See :func:`add_up`.
    """
    if in_passes is None:
        in_passes = goes_in_passes(grad)
    for i, part in enumerate(parts(grad, in_passes)):
        some = grad[:, part]
        some = some if _is_dense(some) else some.contiguous()
        for name, (fast, tensors) in terms.items():
            if name in wanted:
                to = fast.part(wanted[name][1], part)
                fast.pull_back(some, i == 0, in_passes, to, **fast.part(tensors, part))


def goes_in_passes(tensor: Tensor) -> bool:
    """Whether many passes over parts in a cache are quicker on this device than few operations.

    This is so on a CPU, where batched products of eight numbers are slow. On other devices each
    operation has to be launched.
    """
    return tensor.device.type == 'cpu'


def parts(rows: Tensor, in_passes: bool) -> Iterator[slice]:
    """Ranges of the output channels u of (s, u, t, w), each of a size that fits a core's cache."""
    channels = rows.shape[1]
    length = max(1, CACHED * channels // max(1, rows.numel())) if in_passes else channels
    for start in range(0, channels, length):
        yield slice(start, start + length)


def _is_dense(rows: Tensor) -> bool:
    """Whether the rows of each convolution follow each other in memory without gaps."""
    _, _, t, w = rows.shape
    strides = rows.stride()
    return (strides[3] == 1 or w == 1) and (strides[2] == w or t == 1) and strides[1] == t * w


class FastBranch:
    """Adds up branches of one kind and computes their gradients, with their formula.

    Subclasses have a quicker :meth:`add`, :meth:`pull_back` or both. ``rows`` and ``grad`` are
    (s, u, t, w) and dense in their last three dimensions. Only gradients that have a tensor in
    ``to`` are written. In :meth:`pull_back`, ``is_first`` is False if other parts of the output
    channels came before; gradients of tensors that all channels share are then added to.

    Args:
        kind (type[Branch]): The kind of branch.
    """

    #: Whether it computes a product as large as the kernel, so that it should come first.
    begins = False

    def __init__(self, kind: type[Branch]):
        self.kind = kind

    def part(self, tensors: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
        """The tensors for some of the output channels."""
        return {
            name: tensor if name in self.kind.shared else tensor[:, part]
            for name, tensor in tensors.items()
        }

    def add(self, rows: Tensor, is_first: bool, in_passes: bool, scale=None, **tensors) -> None:
        """Add the scaled kernel to ``rows``, or write it there if ``is_first``."""
        _add_scaled(rows, is_first, self.kind.formula(rows.shape[2], **tensors), scale)

    def pull_back(
        self, grad: Tensor, is_first: bool, in_passes: bool, to: Mapping[str, Tensor], **tensors
    ) -> None:
        """Write the gradients of the tensors."""
        leaves = {name: tensors[name].detach().requires_grad_() for name in to}
        own = {**tensors, **leaves}
        scale = own.pop('scale', None)
        with torch.enable_grad():
            kernel = self.kind.formula(grad.shape[2], **own)
            kernel = kernel if scale is None else kernel * _beside(scale, kernel)
            found = torch.autograd.grad(kernel, list(leaves.values()), grad)
        for name, gradient in zip(leaves, found):
            if name in self.kind.shared and not is_first:
                to[name].add_(gradient)
            else:
                to[name].copy_(gradient)


class FastOriginal(FastBranch):
    """``weight`` (s, u, t, w)."""

    def pull_back(self, grad, is_first, in_passes, to, weight, scale=None):
        _pull_back_scaled(grad, in_passes, to, 'weight', weight, scale)


class FastPointwise(FastBranch):
    """``weight`` (s, u, w)."""

    def add(self, rows, is_first, in_passes, weight, scale=None):
        if is_first:
            rows.zero_()
        centre = rows.shape[2] // 2
        _add_scaled(rows[:, :, centre], False, weight, scale)

    def pull_back(self, grad, is_first, in_passes, to, weight, scale=None):
        gathered = grad[:, :, grad.shape[2] // 2]
        _pull_back_scaled(gathered, in_passes, to, 'weight', weight, scale)


class FastAverage(FastBranch):
    """``weight`` (s, u, w)."""

    def add(self, rows, is_first, in_passes, weight, scale=None):
        if is_first:
            rows.zero_()
        share = 1 / rows.shape[2]
        if scale is None:
            rows.add_(weight.unsqueeze(2), alpha=share)
        elif not in_passes:
            rows.addcmul_(weight.unsqueeze(2), scale[:, :, None, None], value=share)
        else:
            # Scaling comes first, which is one product for each pair of channels, not for each tap.
            rows.add_((weight * scale.unsqueeze(2)).unsqueeze(2), alpha=share)

    def pull_back(self, grad, is_first, in_passes, to, weight, scale=None):
        _pull_back_scaled(grad.mean(2), in_passes, to, 'weight', weight, scale)


class FastPrior(FastBranch):
    """``weight`` (s, u, w), ``filters`` (s, u, t)."""

    def add(self, rows, is_first, in_passes, weight, filters, scale=None):
        if is_first:
            rows.zero_()
        filters = filters if scale is None else filters * scale.unsqueeze(2)
        rows.addcmul_(filters.unsqueeze(3), weight.unsqueeze(2))

    def pull_back(self, grad, is_first, in_passes, to, weight, filters, scale=None):
        s, u, t, w = grad.shape
        gathered = torch.bmm(filters.reshape(s * u, 1, t), grad.reshape(s * u, t, w))
        _pull_back_scaled(gathered.view(s, u, w), in_passes, to, 'weight', weight, scale)


class FastPointwiseKxK(FastBranch):
    """``weight`` (s, u, t, m), ``residual`` (s, m, w), and optionally ``identity`` (s, m, w)."""

    begins = True

    def add(self, rows, is_first, in_passes, weight, residual, identity=None, scale=None):
        _add_product(rows, is_first, weight, plus_identity(residual, identity), scale)

    def pull_back(self, grad, is_first, in_passes, to, weight, residual, identity=None, scale=None):
        own = dict(first=plus_identity(residual, identity), second=weight)
        _pull_back_product(grad, is_first, in_passes, to, ('residual', 'weight'), scale, **own)


class FastPointwisePointwise(FastBranch):
    """``second`` (s, u, m), ``first`` (s, m, w), t = 1."""

    begins = True

    def add(self, rows, is_first, in_passes, first, second, scale=None):
        _add_product(rows, is_first, second.unsqueeze(2), first, scale)

    def pull_back(self, grad, is_first, in_passes, to, first, second, scale=None):
        own = dict(first=first, second=second.unsqueeze(2))
        _pull_back_product(grad, is_first, in_passes, to, ('first', 'second'), scale, **own)


class FastSeparable(FastBranch):
    """``pointwise`` (s, u, 8, w), ``depthwise`` (s, 8, t, w).

    In passes it handles one of the eight filters, or one tap, after the other, because batched
    products of eight numbers are slow on a CPU.
    """

    def add(self, rows, is_first, in_passes, depthwise, pointwise, scale=None):
        shares = pointwise if scale is None else pointwise * scale[:, :, None, None]
        if not in_passes:
            _add_scaled(rows, is_first, self.kind.formula(None, depthwise, shares), None)
            return
        if is_first:
            rows.zero_()
        for e in range(SEPARABLE_MULTIPLIER):
            rows.addcmul_(shares[:, :, e, None], depthwise[:, None, e])

    def pull_back(self, grad, is_first, in_passes, to, depthwise, pointwise, scale=None):
        # Done here once; otherwise both products would move the channels to the front.
        grad = grad if in_passes else grad.permute(0, 3, 1, 2).contiguous()
        if 'depthwise' in to:
            shares = pointwise if scale is None else pointwise * scale[:, :, None, None]
            if in_passes:
                found = _of_filters(grad, shares)
            else:
                found = torch.einsum('swut,suew->setw', grad, shares)
            to['depthwise'].copy_(found) if is_first else to['depthwise'].add_(found)
        if in_passes:
            found = _of_shares(grad, depthwise)
        else:
            found = torch.einsum('swut,setw->suew', grad, depthwise)
        _pull_back_scaled(found, in_passes, to, 'pointwise', pointwise, scale)


def _of_filters(grad: Tensor, shares: Tensor) -> Tensor:
    """The product of (s, u, t, w) and (s, u, 8, w), summed over u: (s, 8, t, w)."""
    s, u, t, w = grad.shape
    # As many sums at a time as fit the cache, which needs fewer calls.
    beside = max(1, min(u, CACHED_SUMS // (s * SEPARABLE_MULTIPLIER * t * w)))
    sums = grad.new_zeros(s, beside, SEPARABLE_MULTIPLIER, t, w)
    for one_grad, one_share in zip(grad.split(beside, 1), shares.split(beside, 1)):
        sums[:, : one_grad.shape[1]].addcmul_(one_share.unsqueeze(3), one_grad.unsqueeze(2))
    return sums.sum(1)


def _of_shares(grad: Tensor, depthwise: Tensor) -> Tensor:
    """The product of (s, u, t, w) and (s, 8, t, w), summed over t: (s, u, 8, w)."""
    found = torch.mul(grad[:, :, 0, None], depthwise[:, None, :, 0])
    for tap in range(1, grad.shape[2]):
        found.addcmul_(grad[:, :, tap, None], depthwise[:, None, :, tap])
    return found


#: The branches that have a quicker way than their formulas.
FAST: dict[type[Branch], FastBranch] = {
    kind: fast(kind)
    for kind, fast in [
        (branches.Original, FastOriginal),
        (branches.Average, FastAverage),
        (branches.Prior, FastPrior),
        (branches.PointwiseKxK, FastPointwiseKxK),
        (branches.Pointwise, FastPointwise),
        (branches.Separable, FastSeparable),
        (branches.PointwisePointwise, FastPointwisePointwise),
    ]
}


def fast_of(kind: type[Branch]) -> FastBranch:
    """The quickest way for a kind of branch."""
    return FAST.get(kind) or FastBranch(kind)


def _add_scaled(rows: Tensor, is_first: bool, weight: Tensor, scale: Tensor | None) -> None:
    """Add ``weight`` (s, u, ...) times ``scale`` (s, u) to ``rows``, or write it there."""
    if is_first:
        rows.copy_(weight) if scale is None else torch.mul(weight, _beside(scale, weight), out=rows)
    elif scale is None:
        rows.add_(weight)
    else:
        rows.addcmul_(weight, _beside(scale, weight))


def _pull_back_scaled(grad, in_passes, to, name, weight, scale) -> None:
    """The gradients of both factors of a term ``scale * weight``, given the term's gradient."""
    if 'scale' in to:
        _dot(grad, weight, in_passes, to['scale'])
    if name in to:
        to[name].copy_(grad) if scale is None else torch.mul(
            grad, _beside(scale, grad), out=to[name]
        )


def _add_product(rows, is_first, second, first, scale) -> None:
    """Add ``scale * second @ first``, (s, u, t, m) times (s, m, w)."""
    if not is_first:
        product = _matmul(second.flatten(1, 2), first)
        _add_scaled(rows, False, product.view(rows.shape), scale)
        return
    _matmul(second.flatten(1, 2), first, out=rows.flatten(1, 2))
    if scale is not None:
        rows.mul_(_beside(scale, rows))


def _pull_back_product(grad, is_first, in_passes, to, names, scale, first, second) -> None:
    """The gradients of :func:`_add_product`; ``names`` are those of the factors."""
    if names[0] in to:
        scaled = grad if scale is None else grad * _beside(scale, grad)
        factors = second.flatten(1, 2).mT, scaled.flatten(1, 2)
        if is_first:
            _matmul(*factors, out=to[names[0]])
        elif len(first) > 1:
            to[names[0]].baddbmm_(*factors)
        else:
            to[names[0]][0].addmm_(factors[0][0], factors[1][0])
    if names[1] in to or 'scale' in to:
        found = _matmul(grad.flatten(1, 2), first.mT).view(second.shape)
        if 'scale' in to:
            _dot(found, second, in_passes, to['scale'])
        if names[1] in to:
            out = to[names[1]].view(second.shape)
            out.copy_(found) if scale is None else torch.mul(found, _beside(scale, found), out=out)


def _matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The products of (s, n, m) and (s, m, w)."""
    if len(a) > 1:
        return torch.bmm(a, b, out=out)
    # torch.bmm does not always run a batch of one as a single product.
    return torch.mm(a[0], b[0], out=None if out is None else out[0]).unsqueeze(0)


def _dot(a: Tensor, b: Tensor, in_passes: bool, out: Tensor) -> None:
    """The inner products of two tensors (s, u, ...) over all but the first two dimensions."""
    a, b = a.flatten(2), b.flatten(2)
    if in_passes:
        torch.linalg.vecdot(a, b, out=out)
    else:
        n = a.shape[2]
        torch.bmm(a.reshape(-1, 1, n), b.reshape(-1, n, 1), out=out.view(-1, 1, 1))


def _beside(scale: Tensor, like: Tensor) -> Tensor:
    """``scale`` (s, u) as (s, u, 1, ...)."""
    return scale.reshape(*scale.shape, *[1] * (like.dim() - 2))
