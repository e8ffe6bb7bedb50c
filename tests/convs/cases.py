"""Blocks of every kind, in every mode, for tests of what holds for all of them."""

import torch
from torch import nn

from mmorepa.convs import (
    ACNetConv2d,
    DBBConv2d,
    ExpandConv2d,
    MobileOneConv2d,
    OREPAConv2d,
    OREPARepVGGConv2d,
    ReparamConv2d,
    RepVGGConv2d,
)
from support import make_trained_like

#: Kinds whose kernel is generated, with a kernel size, and the modes they know.
GENERATED = {
    'pointwise': (OREPAConv2d, 1),
    'kxk': (OREPAConv2d, 3),
    'stem': (OREPAConv2d, 7),
    'ExpandNet': (ExpandConv2d, 3),
}
#: Kinds with BatchNorms inside.
NORMED = {
    'DBB': (DBBConv2d, 3),
    'RepVGG': (RepVGGConv2d, 3),
    'ACNet': (ACNetConv2d, 3),
    'MobileOne': (MobileOneConv2d, 3),
    'OREPA-RepVGG': (OREPARepVGGConv2d, 3),
}
KINDS = {**GENERATED, **NORMED}

#: Every kind with each of its modes; None for one that has none.
EVERY = [(name, mode) for name, (kind, _) in GENERATED.items() for mode in kind.modes]
EVERY += [(name, None) for name in NORMED]

#: Input and output channels of a block.
CHANNELS = (4, 6)


def label(case) -> str:
    """A name of a case for pytest."""
    return ' '.join(part for part in case if part)


def new_block(name: str, mode: str | None = None, **options) -> ReparamConv2d:
    """A block with values away from its defaults, in training mode; the same for every mode."""
    torch.manual_seed(0)
    kind, size = KINDS[name]
    if mode is not None:
        options['mode'] = mode
    block = make_trained_like(kind(*CHANNELS, size, padding=size // 2, **options))
    # Values were written through `.data`, after which a block wants to be told.
    return block.eval().train()


def image(batch: int = 2) -> torch.Tensor:
    """An input of a block."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, CHANNELS[0], 9, 9, generator=generator)


def plain(block: ReparamConv2d) -> nn.Conv2d:
    """The ``nn.Conv2d`` that a block amounts to, made without asking it for its weight."""
    kernel, bias = block.merged()
    conv = nn.Conv2d(
        block.in_channels,
        block.out_channels,
        block.kernel_size,
        block.stride,
        block.padding,
        bias=bias is not None,
    )
    with torch.no_grad():
        conv.weight.copy_(kernel)
        if bias is not None:
            conv.bias.copy_(bias)
    return conv.train(block.training)
