"""The floor under generating a kernel: the matrix products that no implementation can avoid.

A k x k block has one, ``(O k^2 x M) (M x I/g)`` in each of g groups, of its 1x1 then k x k branch;
a 1x1 block one, of its two 1x1 kernels; the deep linear stem those of its 3 x 3 layers, and one
for each further layer that is composed. Each costs one product forward and two backward. Beside
them each parameter has to be read once, and each gradient written once. All other branches are
taken to cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...convs import OREPAConv2d
from .plan import Setup
from .timing import Clock

#: Groups, rows, inner dimension and columns of a product of two matrices in each group.
Product = tuple[int, int, int, int]


def products(in_channels: int, out_channels: int, kernel_size: int, groups: int) -> list[Product]:
    """The products that a kernel cannot be generated without.

    Args:
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k, odd.
        groups (int): g.

    Returns:
        list[Product]: See there.

    Example:
        >>> products(512, 512, 3, 1)
        [(1, 4608, 512, 512)]
    """
    in_width, out_width = in_channels // groups, out_channels // groups
    if kernel_size == 1:
        return [(groups, out_width, min(in_width, out_width), in_width)]
    if kernel_size < 7:
        middle = in_width if groups <= 4 else 2 * in_width
        return [(groups, kernel_size**2 * out_width, middle, in_width)]
    found = products(in_channels, out_channels, 3, groups)
    for size in range(5, kernel_size + 1, 2):
        found += products(out_channels, out_channels, 3, groups)
        found.append((groups, out_width, 9 * out_width, in_width * size**2))
    return found


class Floor:
    """Runs the floor of a block, once forward and once backward, into memory that is there already.

    Args:
        block (OREPAConv2d): Whose kernel it is about; with all its branches.
        setup (Setup): See there; the products are in float32.
    """

    def __init__(self, block: OREPAConv2d, setup: Setup):
        self.clock = Clock(setup.device)
        self.steps = setup.steps
        device = self.clock.device
        shape = block.in_channels, block.out_channels, block.kernel_size[0], block.groups

        def random(*sizes: int) -> Tensor:
            return torch.randn(*sizes, device=device)

        self.triples = [
            (random(g, rows, inner), random(g, inner, columns), random(g, rows, columns))
            for g, rows, inner, columns in products(*shape)
        ]
        self.results = [[torch.empty_like(t) for t in triple] for triple in self.triples]
        self.parameters = random(sum(p.numel() for p in block.parameters()))
        self.gradients = torch.empty_like(self.parameters)
        self.sum = torch.empty((), device=device)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Seconds of ``generate`` and ``pull_back``, and of both as ``step``."""
        parts = [('generate', self.forward), ('pull_back', self.backward)]
        return self.clock.timed(parts, self.steps)

    def forward(self) -> None:
        """Read the parameters, and multiply."""
        torch.sum(self.parameters, 0, out=self.sum)
        for (left, right, _), (_, _, product) in zip(self.triples, self.results):
            torch.bmm(left, right, out=product)

    def backward(self) -> None:
        """Multiply the gradient of each product with either factor, and write the gradients."""
        for (left, right, grad), (to_left, to_right, _) in zip(self.triples, self.results):
            torch.bmm(grad, right.transpose(1, 2), out=to_left)
            torch.bmm(left.transpose(1, 2), grad, out=to_right)
        self.gradients.zero_()
