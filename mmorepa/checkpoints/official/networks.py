"""The networks of the released code: their layers, and which one a state dict belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from ...repvgg_archs import ARCHS
from .names import Entry, Layer, Scales, Shape, table_of

#: Residual blocks in each stage, by depth; from 50 on they are bottlenecks.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

#: What the release's ``-a`` takes.
RELEASED = (
    'ResNet-18',
    'ResNet-34',
    'ResNet-50',
    'ResNet-101',
    'ResNet-18-1.5x',
    'ResNet-18-2x',
    'ResNeXt-50',
    'RepVGG-A0',
    'RepVGG-A1',
    'RepVGG-A2',
    'RepVGG-B1',
)

#: The networks that ``configs/imagenet`` has, without the block in front: by architecture.
CONFIGS = {
    'ResNet-18': 'resnet18',
    'ResNet-34': 'resnet34',
    'ResNet-50': 'resnet50',
    'ResNet-101': 'resnet101',
    'ResNet-18-1.5x': 'resnet18-w1.5',
    'ResNet-18-2x': 'resnet18-w2',
    'ResNeXt-50': 'resnext50-32x4d',
    **{
        f'RepVGG-{name}': f'repvgg-{name.lower()}'
        for name in ('A0', 'A1', 'A2', 'B0', 'B1', 'B1g2', 'B1g4', 'B2', 'B3', 'D2se')
    },
}

_NO_GROUPS = 'with -t OREPA_VGG the release cannot run grouped convolutions'


@dataclass(frozen=True)
class Network:
    """A classifier, as the release names it.

    Attributes:
        block (str): TYPE, the release's ``-t``.
        form (str): ``'training'`` or ``'deploy'``.
        classes (int): The number of classes.
    """

    block: str
    form: str
    classes: int

    @property
    def architecture(self) -> str:
        """ARCH, the release's ``-a``; named alike where the release has none."""
        raise NotImplementedError

    @property
    def backbone(self) -> dict:
        """The config of the backbone here."""
        raise NotImplementedError

    @property
    def config(self) -> str | None:
        """The file in ``configs/imagenet`` that builds this network, if there is one."""
        name = CONFIGS.get(self.architecture)
        prefix = self.config_prefixes.get(self.block)
        if name is None or prefix is None or self.classes != 1000:
            return None
        return f'{prefix}{name}_4xb64-120e_in1k.py'

    #: What stands in front of a config's name, by TYPE.
    config_prefixes = {}

    @property
    def model(self) -> dict:
        """The config of the whole classifier here."""
        return dict(
            type='ImageClassifier',
            backbone=self.backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=self.classes,
                in_channels=self.layers[-1].in_channels,
                loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
                topk=(1, 5),
            ),
        )

    @property
    def difference(self) -> str:
        """Why the release computes something else with this network; empty if it does not."""
        return ''

    def convolutions(self) -> Iterable[Layer]:
        """All convolutions with their norms."""
        raise NotImplementedError

    @cached_property
    def layers(self) -> list[Layer]:
        """All convolutions with their norms, and the classifier at the end."""
        convolutions = list(self.convolutions())
        channels = self.out_channels
        return [*convolutions, Layer('linear', 'head.fc', '', channels, self.classes, 1)]

    @property
    def out_channels(self) -> int:
        """Channels in front of the classifier."""
        raise NotImplementedError

    @cached_property
    def lines(self) -> list[tuple[Layer, Entry]]:
        """The lines of the tables that hold for this network."""
        return [
            (layer, entry)
            for layer in self.layers
            for entry in table_of(self.block, layer).entries(layer, self.form)
        ]

    @property
    def spare_rows(self) -> int:
        """The number of rows of ``vector`` that the release never reads, one a block."""
        return sum(entry.spare for _, entry in self.lines if isinstance(entry, Scales))

    def released_shapes(self) -> dict[str, Shape]:
        """The shape of each tensor of the released state dict."""
        return {
            layer.theirs(name): shape
            for layer, entry in self.lines
            for name, shape in entry.released.items()
        }

    def our_shapes(self) -> dict[str, Shape]:
        """The shape of each tensor of the state dict here."""
        return {
            layer.ours(name): shape
            for layer, entry in self.lines
            for name, shape in entry.ours.items()
        }

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a released state dict that has the keys and shapes of this network.

        Raises:
            UserError: If a tensor is not what it has to be; begins with its name.
        """
        result = {}
        for layer, entry in self.lines:
            names = [layer.theirs(name) for name in entry.released]
            try:
                tensors = entry.to_ours(*[state_dict[name] for name in names])
            except UserError as error:
                raise UserError(f'{names[0]} {error}') from None
            result.update(zip(map(layer.ours, entry.ours), tensors))
        return result

    def to_released(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back of :meth:`to_ours`."""
        result = {}
        for layer, entry in self.lines:
            tensors = entry.to_released(*[state_dict[layer.ours(name)] for name in entry.ours])
            result.update(zip(map(layer.theirs, entry.released), tensors))
        return result


@dataclass(frozen=True)
class ResNet(Network):
    """ResNet, WideResNet or ResNeXt.

    Attributes:
        depth (int): 18, 34, 50, 101 or 152.
        base_channels (int): Of the stem; 64 unless the network is wider.
        groups (int): Of the 3x3 convolutions.
        width_per_group (int): Channels of a group in the first stage, where there are several.
    """

    depth: int
    base_channels: int = 64
    groups: int = 1
    width_per_group: int = 64

    config_prefixes = {'base': '', 'DBB': 'dbb-', 'OREPA': 'orepa-'}

    @property
    def is_bottleneck(self) -> bool:
        """Whether a residual block has three convolutions."""
        return self.depth >= 50

    @property
    def out_channels(self) -> int:
        return self.base_channels * 8 * (4 if self.is_bottleneck else 1)

    @property
    def architecture(self) -> str:
        name = f'ResNe{"t" if self.groups == 1 else "Xt"}-{self.depth}'
        if (self.groups, self.width_per_group) not in ((1, 64), (32, 4)):
            name += f'-{self.groups}x{self.width_per_group}d'
        if self.base_channels != 64:
            name += f'-{self.base_channels / 64:g}x'
        return name

    @property
    def backbone(self) -> dict:
        reparam = {'base': None, 'OREPA_VGG': 'OREPA-RepVGG'}.get(self.block, self.block)
        config = dict(type='OREPAResNet', depth=self.depth, reparam=reparam)
        if self.groups > 1:
            config.update(
                type='OREPAResNeXt', groups=self.groups, width_per_group=self.width_per_group
            )
        if self.base_channels != 64:
            config.update(base_channels=self.base_channels, stem_channels=self.base_channels)
        return config

    @property
    def difference(self) -> str:
        if self.block in ('RepVGG', 'OREPA_VGG') and not self.is_bottleneck:
            return (
                f'with -t {self.block} the release puts a ReLU in front of the sum of each basic '
                'block, which is another network than a ResNet'
            )
        if self.block == 'OREPA_VGG' and self.groups > 1:
            return _NO_GROUPS
        return ''

    def convolutions(self) -> Iterable[Layer]:
        channels = self.base_channels
        yield Layer('stage0.conv1', 'backbone.conv1', 'backbone.bn1', 3, channels, 7, 2)
        for stage, depth in enumerate(DEPTHS[self.depth]):
            planes = self.base_channels * 2**stage
            if self.is_bottleneck:
                inside = planes
                if self.groups > 1:
                    inside = self.groups * self.width_per_group * 2**stage
                widths, sizes = [inside, inside, 4 * planes], [1, 3, 1]
            else:
                widths, sizes = [planes, planes], [3, 3]
            for index in range(depth):
                there, here = f'stage{stage + 1}.{index}', f'backbone.layer{stage + 1}.{index}'
                stride = 2 if stage and not index else 1
                strided = sizes.index(3)
                before = channels
                for i, (width, size) in enumerate(zip(widths, sizes)):
                    yield Layer(
                        f'{there}.conv{i + 1}',
                        f'{here}.conv{i + 1}',
                        f'{here}.bn{i + 1}',
                        before,
                        width,
                        size,
                        stride=stride if i == strided else 1,
                        groups=self.groups if size == 3 else 1,
                    )
                    before = width
                if stride != 1 or channels != before:
                    yield Layer(
                        f'{there}.shortcut',
                        f'{here}.downsample.0',
                        f'{here}.downsample.1',
                        channels,
                        before,
                        1,
                        stride=stride,
                        is_plain=not self.is_bottleneck,
                    )
                channels = before


@dataclass(frozen=True)
class RepVGG(Network):
    """RepVGG.

    Attributes:
        arch (str): A name of :data:`mmorepa.repvgg_archs.ARCHS`.
    """

    arch: str

    config_prefixes = {'base': 'plain-', 'RepVGG': '', 'OREPA_VGG': 'orepa-'}

    @cached_property
    def settings(self) -> dict:
        """What the name of the arch stands for."""
        return ARCHS[self.arch]

    @property
    def architecture(self) -> str:
        return f'RepVGG-{self.arch}'

    @property
    def out_channels(self) -> int:
        return int(64 * 8 * self.settings['width_factor'][3])

    @property
    def backbone(self) -> dict:
        names = {
            'base': None,
            'OREPA': dict(type='OREPA', shortcuts=False),
            'OREPA_VGG': 'OREPA',
        }
        reparam = names.get(self.block, self.block)
        return dict(type='OREPARepVGG', arch=self.arch, reparam=reparam)

    @property
    def difference(self) -> str:
        if self.block == 'OREPA_VGG' and self.settings['group_layer_map']:
            return _NO_GROUPS
        return ''

    def convolutions(self) -> Iterable[Layer]:
        factors = self.settings['width_factor']
        groups = self.settings['group_layer_map'] or {}
        has_se = self.settings['se_cfg'] is not None
        places = [('stage0', 'backbone.stem', min(64, int(64 * factors[0])), 2)]
        for stage, depth in enumerate(self.settings['num_blocks']):
            width = int(64 * 2**stage * factors[stage])
            for index in range(depth):
                place = f'stage{stage + 1}.{index}', f'backbone.stage_{stage + 1}.{index}'
                places.append((*place, width, 1 if index else 2))
        channels = 3
        for number, (there, here, width, stride) in enumerate(places):
            yield Layer(
                there,
                f'{here}.branch_reparam',
                f'{here}.norm',
                channels,
                width,
                3,
                stride=stride,
                groups=groups.get(number, 1),
                se=f'{here}.se_layer' if has_se else '',
            )
            channels = width


@dataclass(frozen=True)
class Naming:
    """What tells networks apart in a state dict, under either set of names.

    Attributes:
        released (bool): Whether the names are the release's.
        resnet (str): What some keys of a ResNet begin with.
        repvgg (str): What some keys of a RepVGG begin with.
        classifier (str): The key of the classifier's weight.
        blocks (dict[str, str]): For each TYPE that has keys of its own a regular expression that
            is found in some; the first that is, counts.
    """

    released: bool
    resnet: str
    repvgg: str
    classifier: str
    blocks: Mapping[str, str]

    def shapes(self, network: Network) -> dict[str, Shape]:
        """The shape of each tensor of a network under these names."""
        return network.released_shapes() if self.released else network.our_shapes()

    def kernel(self, layer: Layer, block: str, form: str) -> str:
        """The key of the kernel that a layer has in common with a plain convolution."""
        first = table_of(block, layer).entries(layer, form)[0]
        if self.released:
            return layer.theirs(next(iter(first.released)))
        return layer.ours(next(iter(first.ours)))


THEIRS = Naming(
    released=True,
    resnet='stage0.conv1.',
    repvgg='stage0.',
    classifier='linear.weight',
    blocks={
        'OREPA_VGG': r'\.weight_rbr_',
        'RepVGG': r'\.rbr_',
        'DBB': r'\.dbb_',
        'OREPA': r'\.(weight_or|orepa_|or1x1_|or_large_)',
    },
)

OURS = Naming(
    released=False,
    resnet='backbone.conv1.',
    repvgg='backbone.stem.branch_reparam.',
    classifier='head.fc.weight',
    blocks={
        'OREPA_VGG': r'\.original\.conv\.kernel\.',
        'DBB': r'\.inner_norm\.',
        'RepVGG': r'\.original\.norm\.',
        'OREPA': r'\.kernel\.',
    },
)


def recognize(state_dict: Mapping[str, Tensor], naming: Naming) -> Network | None:
    """The network whose tensors are nearest to those of a state dict.

    Args:
        state_dict (Mapping[str, Tensor]): Under either set of names.
        naming (Naming): Which.

    Returns:
        Network: Whether it really fits is still to be seen. None if there is none of either kind.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    is_resnet = any(key.startswith(naming.resnet) for key in shapes)
    if not is_resnet and not any(key.startswith(naming.repvgg) for key in shapes):
        return None
    block = next(
        (
            block
            for block, pattern in naming.blocks.items()
            if any(re.search(pattern, key) for key in shapes)
        ),
        'base',
    )
    form = 'training' if any(key.endswith('.running_var') for key in shapes) else 'deploy'
    shape = shapes.get(naming.classifier, ())
    classes = shape[0] if len(shape) == 2 else 1000
    if is_resnet:
        networks = [_resnet(shapes, naming, block, form, classes, depth) for depth in DEPTHS]
    else:
        networks = [RepVGG(block, form, classes, arch) for arch in ARCHS]
    return max(networks, key=lambda network: _alike(naming.shapes(network), shapes))


def _resnet(
    shapes: Mapping[str, Shape],
    naming: Naming,
    block: str,
    form: str,
    classes: int,
    depth: int,
) -> ResNet:
    """The ResNet of this depth, with the widths and groups that are found."""

    def channels(number: int) -> tuple[int, int]:
        """(O, I/g) of a layer; zeros if its kernel is not there."""
        shape = shapes.get(naming.kernel(network.layers[number], block, form), ())
        if len(shape) not in (3, 4) or min(shape) == 0:
            return 0, 0
        return shape[0], shape[1] if len(shape) == 4 else shape[2]

    network = ResNet(block, form, classes, depth)
    base = channels(0)[0] or 64
    network = ResNet(block, form, classes, depth, base)
    # The 3x3 convolution of the first bottleneck takes as many channels as it gives.
    inside, group = channels(2)
    if network.is_bottleneck and inside > group:
        network = ResNet(block, form, classes, depth, base, inside // group, group)
    return network


def _alike(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> float:
    """The share of keys and shapes in common."""
    common = sum(found.get(key) == shape for key, shape in wanted.items())
    return common / (len(wanted) + len(found) - common)


class Wanted(NamedTuple):
    """What a tensor has to be."""

    shape: Shape
    dtype: torch.dtype


def as_wanted(shapes: Mapping[str, Shape]) -> dict[str, Wanted]:
    """What tensors of these shapes have to be: BatchNorm's counters integers, all others floats."""
    return {
        key: Wanted(shape, torch.long if key.endswith('num_batches_tracked') else torch.float)
        for key, shape in shapes.items()
    }
