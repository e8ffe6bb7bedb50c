"""What the released code calls the tensors of a block, and what they are called here.

One table a block type, which is read in both directions. Behaviour and names are those of
JUGGHM/OREPA_CVPR2022; its plain RepVGG block has the names of DingXiaoH/RepVGG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...convs import kernels
from ...convs.orepa.branches import SEPARABLE_MULTIPLIER, filters_first, shares_first
from ...convs.rows import as_kernel, as_rows
from ...errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One convolution with its norm, or the classifier: where it is in either network.

    Attributes:
        released (str): The name of the released module.
        conv (str): The name of the convolution here.
        norm (str): The name of the norm here.
        in_channels (int): I.
        out_channels (int): O.
        kernel_size (int): k.
        stride (int): Defaults to 1.
        groups (int): g. Defaults to 1.
        is_plain (bool): Whether it is a plain convolution in every network. Defaults to False.
        se (str): The name of the SE layer here, if there is one.
    """

    released: str
    conv: str
    norm: str
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    is_plain: bool = False
    se: str = ''

    def ours(self, name: str) -> str:
        """The whole key of a tensor here that a table calls ``conv.…``, ``norm.…`` or ``se.…``."""
        place, _, rest = name.partition('.')
        return f'{getattr(self, place)}.{rest}'

    def theirs(self, name: str) -> str:
        """The whole key of a released tensor."""
        return f'{self.released}.{name}'


class Entry:
    """Released tensors and what they are here: a line of a table.

    Attributes:
        released (dict[str, Shape]): Shapes by the names in the released module.
        ours (dict[str, Shape]): Shapes by the names here, see :meth:`Layer.ours`.
    """

    released: dict[str, Shape]
    ours: dict[str, Shape]

    def to_ours(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The tensors here, out of the released ones.

        Raises:
            UserError: If the released ones are not what they have to be.
        """
        raise NotImplementedError

    def to_released(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The released tensors, out of the ones here."""
        raise NotImplementedError


class Same(Entry):
    """One tensor under two names."""

    def __init__(self, released: str, ours: str, *shape: int):
        self.released = {released: shape}
        self.ours = {ours: shape}

    def to_ours(self, tensor: Tensor) -> Sequence[Tensor]:
        return [tensor]

    def to_released(self, tensor: Tensor) -> Sequence[Tensor]:
        return [tensor]


class Rows(Entry):
    """A weight, (O, I/g, k, k) there and in rows here, (O, k^2, I/g)."""

    def __init__(self, released: str, ours: str, channels: int, width: int, size: int):
        self.size = size
        self.released = {released: (channels, width, size, size)}
        self.ours = {ours: (channels, size**2, width)}

    def to_ours(self, weight: Tensor) -> Sequence[Tensor]:
        return [as_rows(weight)]

    def to_released(self, weight: Tensor) -> Sequence[Tensor]:
        return [as_kernel(weight, self.size).contiguous()]


class Filters(Entry):
    """The depthwise weight of the separable branch, (8 I, 1, k, k) there and (8, k^2, I) here."""

    def __init__(self, released: str, ours: str, channels: int, size: int):
        self.size = size
        self.released = {released: (SEPARABLE_MULTIPLIER * channels, 1, size, size)}
        self.ours = {ours: (SEPARABLE_MULTIPLIER, size**2, channels)}

    def to_ours(self, weight: Tensor) -> Sequence[Tensor]:
        return [filters_first(weight)]

    def to_released(self, weight: Tensor) -> Sequence[Tensor]:
        filters = as_kernel(weight, self.size)
        return [filters.transpose(0, 1).flatten(0, 1).unsqueeze(1).contiguous()]


class Shares(Entry):
    """The pointwise weight of the separable branch, (O, 8 I/g, 1, 1) there, (O, 8, I/g) here.

    The release reads its output channels with the groups interleaved, (O/g, g), where every other
    grouped convolution has (g, O/g).
    """

    def __init__(self, released: str, ours: str, channels: int, width: int, groups: int):
        self.groups = groups
        self.released = {released: (channels, SEPARABLE_MULTIPLIER * width, 1, 1)}
        self.ours = {ours: (channels, SEPARABLE_MULTIPLIER, width)}

    def to_ours(self, weight: Tensor) -> Sequence[Tensor]:
        return [shares_first(_transposed(weight, (-1, self.groups)))]

    def to_released(self, weight: Tensor) -> Sequence[Tensor]:
        weight = weight.transpose(1, 2).flatten(1)[:, :, None, None]
        return [_transposed(weight, (self.groups, -1)).contiguous()]


def _transposed(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """With the first axis, read in this shape, transposed."""
    return tensor.unflatten(0, shape).transpose(0, 1).flatten(0, 1)


class Scales(Entry):
    """The rows of ``vector``, one scale of O numbers a branch.

    Args:
        released (str): Its name.
        ours (Sequence[str]): The scales here in the order of the rows.
        channels (int): O.
        spare (int): Rows behind them that the release never reads. They are dropped, and zero on
            the way back.
    """

    def __init__(self, released: str, ours: Sequence[str], channels: int, spare: int = 0):
        self.spare = spare
        self.released = {released: (len(ours) + spare, channels)}
        self.ours = {name: (channels,) for name in ours}

    def to_ours(self, vector: Tensor) -> Sequence[Tensor]:
        return [row.clone() for row in vector[: len(self.ours)]]

    def to_released(self, *scales: Tensor) -> Sequence[Tensor]:
        return [torch.stack([*scales, *[torch.zeros_like(scales[0])] * self.spare])]


class Constant(Entry):
    """A released buffer that follows from the shape of the block, so that nothing is stored here.

    Args:
        released (str): Its name.
        formula (Callable): Gives its value.
        shape (int): Its shape.
    """

    #: How far it may lie off, in units of the rounding of its dtype, or of float32, in which the
    #: release computes it.
    ROUNDING = 4

    def __init__(self, released: str, formula: Callable[[], Tensor], *shape: int):
        self.formula = formula
        self.released = {released: shape}
        self.ours = {}

    def to_ours(self, tensor: Tensor) -> Sequence[Tensor]:
        gap = (tensor.double() - self.value()).abs().max().item()
        rounding = max(torch.finfo(dtype).eps for dtype in (tensor.dtype, torch.float32))
        # A NaN is not within the tolerance either.
        if not gap <= self.ROUNDING * rounding:
            raise UserError(
                f'is not the constant that the released code computes, {gap:.1e} away from it: '
                'wanted a checkpoint of the code as it was released'
            )
        return []

    def to_released(self) -> Sequence[Tensor]:
        return [self.value().float()]

    def value(self) -> Tensor:
        """The constant in float64."""
        return self.formula().double().reshape(next(iter(self.released.values())))


def norm(released: str, ours: str, channels: int) -> list[Entry]:
    """A BatchNorm."""
    names = ('weight', 'bias', 'running_mean', 'running_var')
    return [
        *[Same(f'{released}.{name}', f'{ours}.{name}', channels) for name in names],
        Same(f'{released}.num_batches_tracked', f'{ours}.num_batches_tracked'),
    ]


def convolution(released: str, ours: str, layer: Layer, size: int | None = None) -> Entry:
    """A weight of shape (O, I/g, size, size), k x k by default."""
    size = size or layer.kernel_size
    width = layer.in_channels // layer.groups
    return Same(released, ours, layer.out_channels, width, size, size)


# The tables. The first line of each is the kernel that the block has in common with a plain
# convolution, (O, I/g, k, k) or (O, k^2, I/g).


#: The rows of ``vector``. A RepVGG block has its 1x1 branch elsewhere, so it lacks that row.
ROWS = ('original', 'average', 'prior', 'pointwise_kxk', 'pointwise', 'separable')


def plain(layer: Layer) -> list[Entry]:
    """A convolution and a BatchNorm."""
    return [
        convolution('conv.weight', 'conv.weight', layer),
        *norm('bn', 'norm', layer.out_channels),
    ]


def orepa(layer: Layer) -> list[Entry]:
    """The k x k block."""
    return [
        *_squeezed(
            layer,
            'weight_orepa_',
            'conv.kernel.',
            ROWS,
        ),
        *norm('bn', 'norm', layer.out_channels),
    ]


def orepa_pointwise(layer: Layer) -> list[Entry]:
    """The 1x1 block."""
    i, o = layer.in_channels, layer.out_channels
    first, second = ((i, i), (o, i)) if o > i else ((o, i), (o, o))
    pair = 'conv.kernel.pointwise_pointwise'
    return [
        Rows('weight_or1x1_origin', 'conv.kernel.original.weight', o, i // layer.groups, 1),
        Same('weight_or1x1_l2i_conv1', f'{pair}.first', *first, 1, 1),
        Same('weight_or1x1_l2i_conv2', f'{pair}.second', *second, 1, 1),
        Scales('vector', ['conv.kernel.original.scale', f'{pair}.scale'], o),
        *norm('bn', 'norm', o),
    ]


def orepa_stem(layer: Layer) -> list[Entry]:
    """The deep linear stem: blocks of 3x3 in a row, and one BatchNorm."""
    entries = []
    channels = layer.in_channels
    for step in range((layer.kernel_size - 1) // 2):
        block = Layer('', '', '', channels, layer.out_channels, 3)
        entries += _squeezed(
            block,
            f'weight{step}.weight_orepa_',
            f'conv.kernel.{step}.',
            ROWS,
        )
        channels = layer.out_channels
    return [*entries, *norm('bn', 'norm', layer.out_channels)]


def dbb(layer: Layer) -> list[Entry]:
    """The Diverse Branch Block."""
    i, o = layer.in_channels, layer.out_channels
    return [
        convolution('dbb_origin.conv.weight', 'conv.original.weight', layer),
        *norm('dbb_origin.bn', 'conv.original.norm', o),
        convolution('dbb_1x1.conv.weight', 'conv.pointwise.weight', layer, 1),
        *norm('dbb_1x1.bn', 'conv.pointwise.norm', o),
        convolution('dbb_avg.conv.weight', 'conv.average.weight', layer, 1),
        *norm('dbb_avg.bn.bn', 'conv.average.inner_norm', o),
        *norm('dbb_avg.avgbn', 'conv.average.norm', o),
        Same(
            'dbb_1x1_kxk.idconv1.weight',
            'conv.pointwise_kxk.residual',
            i,
            i // layer.groups,
            1,
            1,
        ),
        *norm('dbb_1x1_kxk.bn1.bn', 'conv.pointwise_kxk.inner_norm', i),
        convolution('dbb_1x1_kxk.conv2.weight', 'conv.pointwise_kxk.weight', layer),
        *norm('dbb_1x1_kxk.bn2', 'conv.pointwise_kxk.norm', o),
    ]


def repvgg(layer: Layer) -> list[Entry]:
    """The RepVGG block."""
    return [
        convolution('rbr_dense.conv.weight', 'conv.original.weight', layer),
        *_shortcuts(layer),
        *_se(layer),
    ]


def orepa_repvgg(layer: Layer) -> list[Entry]:
    """The RepVGG block with an OREPA block in it."""
    return [
        *_squeezed(
            layer,
            'rbr_dense.weight_rbr_',
            'conv.original.conv.kernel.',
            [row for row in ROWS if row != 'pointwise'],
            spare=_keeps_shape(layer),
        ),
        *_shortcuts(layer),
        *_se(layer),
    ]


def classifier(layer: Layer) -> list[Entry]:
    """The linear layer at the end."""
    return [
        Same('weight', 'conv.weight', layer.out_channels, layer.in_channels),
        Same('bias', 'conv.bias', layer.out_channels),
    ]


def _squeezed(
    layer: Layer, released: str, ours: str, rows: Sequence[str], spare: int = 0
) -> list[Entry]:
    """An OREPA block without its BatchNorm, whose scales are ``rows``.

    The names of all but ``vector`` and ``id_tensor`` begin with ``released`` there.
    """
    i, o, g, k = layer.in_channels, layer.out_channels, layer.groups, layer.kernel_size
    middle = i if g <= 4 else 2 * i
    module = released.removesuffix(released.rpartition('.')[2])
    entries = [
        Rows(f'{released}origin', f'{ours}original.weight', o, i // g, k),
        convolution(f'{released}avg_conv', f'{ours}average.weight', layer, 1),
        convolution(f'{released}pfir_conv', f'{ours}prior.weight', layer, 1),
        Same(f'{released}1x1_kxk_idconv1', f'{ours}pointwise_kxk.residual', middle, i // g, 1, 1),
        Rows(f'{released}1x1_kxk_conv2', f'{ours}pointwise_kxk.weight', o, middle // g, k),
        Filters(f'{released}gconv_dw', f'{ours}separable.depthwise', i, k),
        Shares(f'{released}gconv_pw', f'{ours}separable.pointwise', o, i // g, g),
        Scales(f'{module}vector', [f'{ours}{row}.scale' for row in rows], o, spare),
        Constant(f'{released}avg_avg', lambda: torch.full((k, k), 1 / k**2).double(), k, k),
        Constant(f'{released}prior', lambda: kernels.frequency_prior(o, k), o, k, k),
        Constant(
            f'{module}id_tensor',
            lambda: kernels.grouped_identity(middle, i, g),
            middle,
            i // g,
            1,
            1,
        ),
    ]
    if 'pointwise' in rows:
        entries.append(convolution(f'{released}1x1', f'{ours}pointwise.weight', layer, 1))
    return entries


def _keeps_shape(layer: Layer) -> bool:
    return layer.stride == 1 and layer.in_channels == layer.out_channels


def _shortcuts(layer: Layer) -> list[Entry]:
    """All of a RepVGG block but its k x k convolution."""
    o = layer.out_channels
    identity = norm('rbr_identity', 'conv.identity.norm', o) if _keeps_shape(layer) else []
    return [
        *norm('rbr_dense.bn', 'conv.original.norm', o),
        convolution('rbr_1x1.conv.weight', 'conv.pointwise.weight', layer, 1),
        *norm('rbr_1x1.bn', 'conv.pointwise.norm', o),
        *identity,
    ]


def _se(layer: Layer) -> list[Entry]:
    """The SE layer behind a RepVGG block."""
    if not layer.se:
        return []
    o, inside = layer.out_channels, layer.out_channels // 16
    return [
        Same('se.down.weight', 'se.conv1.conv.weight', inside, o, 1, 1),
        Same('se.down.bias', 'se.conv1.conv.bias', inside),
        Same('se.up.weight', 'se.conv2.conv.weight', o, inside, 1, 1),
        Same('se.up.bias', 'se.conv2.conv.bias', o),
    ]


class Table(NamedTuple):
    """A block type.

    Attributes:
        training (Callable): Gives the lines for a layer in the training form.
        deploy (str): The name of the one convolution in the deploy form.
    """

    training: Callable[[Layer], list[Entry]]
    deploy: str

    def entries(self, layer: Layer, form: str) -> list[Entry]:
        """The lines for a layer in the form ``'training'`` or ``'deploy'``."""
        if form == 'training' or self.training is classifier:
            return self.training(layer)
        return [
            convolution(f'{self.deploy}.weight', 'conv.weight', layer),
            Same(f'{self.deploy}.bias', 'conv.bias', layer.out_channels),
            *_se(layer),
        ]


PLAIN = Table(plain, 'conv')
CLASSIFIER = Table(classifier, '')

#: By the release's TYPE and the kernel size; other sizes are plain.
TABLES: dict[str, dict[int, Table]] = {
    'base': {},
    'DBB': {3: Table(dbb, 'dbb_reparam')},
    'OREPA': {
        1: Table(orepa_pointwise, 'or1x1_reparam'),
        3: Table(orepa, 'orepa_reparam'),
        7: Table(orepa_stem, 'or_large_reparam'),
    },
    'RepVGG': {3: Table(repvgg, 'rbr_reparam')},
    'OREPA_VGG': {3: Table(orepa_repvgg, 'rbr_reparam')},
}


def table_of(block: str, layer: Layer) -> Table:
    """What a layer is in a network of the TYPE ``block``."""
    if layer.released == 'linear':
        return CLASSIFIER
    return PLAIN if layer.is_plain else TABLES[block].get(layer.kernel_size, PLAIN)
