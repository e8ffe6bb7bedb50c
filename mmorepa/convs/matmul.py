"""The matrix products of a block, where nearly all its arithmetic is; in half precision if wanted.

Where a block has two convolutions in turn, the square one starts as the identity E, and training
moves it by a residual R: ``a (E + R) = a + a R``. In half precision only ``a R`` is computed, with
sums in float32, so that what rounding loses is small next to the kernel. On processors with
bfloat16 arithmetic that product takes half the time or less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

#: What ``matmul_dtype`` may name. float16 is not in it: gradients of kernels leave its range.
DTYPES = dict(bfloat16=torch.bfloat16)


def find_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of the option ``matmul_dtype``.

    Raises:
        UserError: If there is no such one.
    """
    if name is not None and name not in DTYPES:
        raise UserError(f'matmul_dtype={name!r} is not known: choose {", ".join(DTYPES)} or None')
    return None if name is None else DTYPES[name]


def matmul(
    a: Tensor,
    b: Tensor,
    dtype: torch.dtype | None = None,
    near_identity: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The products of ``a`` (g, m, t) and ``b`` (g, t, n), (g, m, n).

    Args:
        a (Tensor): The left factors.
        b (Tensor): The right factors.
        dtype (torch.dtype, optional): Round the factors to this one, and the products too. That of
            the factors by default.
        near_identity (str, optional): ``'a'``, a square factor near the identity, or ``'b'``, which
            may be near several on top of each other or beside each other; rounding spares these.
        out (Tensor, optional): Where the products may be written.

    Returns:
        Tensor: In the dtype of the factors.
    """
    if dtype is None:
        if len(a) > 1:
            return torch.bmm(a, b, out=out)
        # A batch of one is not always passed on as the one product that it is.
        return torch.mm(a[0], b[0], out=None if out is None else out[0]).unsqueeze(0)
    if near_identity is None:
        return matmul(a.to(dtype), b.to(dtype)).to(a.dtype)
    if near_identity == 'a':
        return matmul(a - _identities(a), b, dtype).add_(b)
    products = matmul(a, b - _identities(b), dtype)
    height, width = b.shape[1:]
    if height > width:
        return products.add_(a.unflatten(2, (-1, width)).sum(2))
    for beside in products.split(height, 2):
        beside.add_(a)
    return products


def _identities(like: Tensor) -> Tensor:
    """Identities on top of each other or beside each other, (m, n) for ``like`` (g, m, n)."""
    height, width = like.shape[1:]
    square = min(height, width)
    identity = torch.eye(square, dtype=like.dtype, device=like.device)
    return identity.repeat(height // square, width // square)
