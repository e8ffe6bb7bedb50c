"""RepVGG, plain and re-parameterised.

Ding, Zhang, Ma, Han, Ding, Sun, "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, tables
2 and 3; with SE layers: D2se of the code that the authors released later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmcv.cnn import ConvModule, build_activation_layer, build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..repvgg_archs import ARCHS
from .activation_checkpoint import checkpointed
from .reparam_mixin import ReparamMixin

_REQUIRED = ('num_blocks', 'width_factor')
_OPTIONAL = ('group_layer_map', 'se_cfg', 'stem_channels')

_NORM = dict(type='BN')
_ACT = dict(type='ReLU')
_INIT = [
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
]


class SELayer(nn.Module):
    """Squeeze and excitation: a factor between 0 and 1 for each channel of each image.

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, fig. 2. The submodules have
    mmpretrain's names.

    Args:
        channels (int): The number of channels, C.
        ratio (int): There are C / ratio channels inside, rounded. Defaults to 16.
        divisor (int): The number of channels inside is a multiple of this. Defaults to 8.
    """

    def __init__(self, channels: int, ratio: int = 16, divisor: int = 8):
        super().__init__()
        inside = nearest_multiple(channels // ratio, divisor)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(channels, inside, 1, act_cfg=dict(type='ReLU'))
        self.conv2 = ConvModule(inside, channels, 1, act_cfg=dict(type='Sigmoid'))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x * self.conv2(self.conv1(self.global_avgpool(x)))


def nearest_multiple(value: int, divisor: int) -> int:
    """The multiple of ``divisor`` nearest to ``value`` that is not below nine tenths of it."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


class RepVGGLayer(nn.Module):
    """A 3x3 convolution, a norm, an SE layer if ``se_cfg`` is given, and an activation.

    The order of the children says that the norm stands behind the convolution, see
    :func:`mmorepa.convs.convert.pairs.conv_norm_pairs`. The convolution has the same name as in
    mmpretrain's deploy form.

    Args:
        in_channels (int): The number of input channels, I.
        out_channels (int): The number of output channels, O.
        stride (int): The stride of the convolution. Defaults to 1.
        dilation (int): The dilation, and also the padding, so that stride 1 keeps height and width.
            Defaults to 1.
        groups (int): The groups of the convolution. Defaults to 1.
        se_cfg (dict, optional): Arguments of :class:`SELayer`. None builds no such layer.
        conv_cfg (dict, optional): The convolution's config, see mmcv.
        norm_cfg (dict): The norm's config, see mmcv. Defaults to ``dict(type='BN')``.
        act_cfg (dict): The activation's config, see mmcv. Defaults to ``dict(type='ReLU')``.
        with_cp (bool): Whether to use activation checkpointing. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        se_cfg: Mapping | None = None,
        conv_cfg: dict | None = None,
        norm_cfg: dict = _NORM,
        act_cfg: dict = _ACT,
        with_cp: bool = False,
    ):
        super().__init__()
        self.with_cp = with_cp
        self.branch_reparam = build_conv_layer(
            conv_cfg,
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.se_layer = nn.Identity() if se_cfg is None else SELayer(out_channels, **se_cfg)
        self.act = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H', W')."""
        if self.with_cp and x.requires_grad:
            return checkpointed(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.act(self.se_layer(self.norm(self.branch_reparam(x))))


class RepVGG(BaseModule):
    """The plain network: a stem and stages of 3x3 convolutions, one after the other.

    This is RepVGG as it is deployed, but with a BatchNorm behind each convolution. Its deploy form
    has the state dict of mmpretrain's ``RepVGG(arch, deploy=True)``. The arguments are mmpretrain's
    except ``add_ppf``, which belongs to YOLOX-PAI.

    Args:
        arch (str | dict): A name of :data:`ARCHS`, or a dict with

            - ``num_blocks`` (Sequence[int]): Layers in each stage.
            - ``width_factor`` (Sequence[float]): Stage ``i``, from zero, has
              ``base_channels * 2**i * width_factor[i]`` channels.
            - ``group_layer_map`` (dict[int, int], optional): The number of groups of each layer
              that has more than one. Layers are counted through all stages; the stem is number 0.
            - ``se_cfg`` (dict, optional): ``ratio`` and ``divisor`` of the SE layer behind each
              norm. None builds no such layers.
            - ``stem_channels`` (int, optional): Width of the stem, unless the first stage is
              narrower. Defaults to 64.

        in_channels (int): Channels of the image. Defaults to 3.
        base_channels (int): The width that ``width_factor`` multiplies. Defaults to 64.
        out_indices (Sequence[int]): The stages whose outputs are returned, from zero. Defaults to
            ``(3,)``.
        strides (Sequence[int]): The stride of the first layer of each stage; the stem has stride 2.
            Defaults to ``(2, 2, 2, 2)``.
        dilations (Sequence[int]): The dilation of each stage. Defaults to ``(1, 1, 1, 1)``.
        frozen_stages (int): 0 freezes the stem, i also the stages up to the i-th, both parameters
            and BatchNorm statistics. -1 freezes nothing. Defaults to -1.
        conv_cfg (dict, optional): The convolutions' config, see mmcv.
        norm_cfg (dict): The norms' config, see mmcv. Defaults to ``dict(type='BN')``.
        act_cfg (dict): The activations' config, see mmcv. Defaults to ``dict(type='ReLU')``.
        with_cp (bool): Use activation checkpointing in each layer, which saves memory and takes
            more time. Defaults to False.
        norm_eval (bool): Keep all BatchNorms in eval mode. Defaults to False.
        init_cfg (dict | list[dict], optional): The initialisation, see MMEngine. Defaults to
            Kaiming for convolutions and one for the weights of norms.

    Raises:
        UserError: If ``arch`` is not known or has other keys, if the sequences for the stages
            differ in length, or if an index names no stage or layer.

    Example:
        >>> backbone = RepVGG('A0', out_indices=(0, 1, 2, 3))
        >>> [tuple(out.shape[1:]) for out in backbone(torch.rand(1, 3, 64, 64))]
        [(48, 16, 16), (96, 8, 8), (192, 4, 4), (1280, 2, 2)]
    """

    def __init__(
        self,
        arch: str | Mapping,
        in_channels: int = 3,
        base_channels: int = 64,
        out_indices: Sequence[int] = (3,),
        strides: Sequence[int] = (2, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = _NORM,
        act_cfg: dict = _ACT,
        with_cp: bool = False,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = _INIT,
    ):
        super().__init__(init_cfg)
        self.arch = find_arch(arch)
        self.in_channels = in_channels
        self.base_channels = base_channels
        self.out_indices = out_indices
        self.strides = strides
        self.dilations = dilations
        self.frozen_stages = frozen_stages
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        self.act_cfg = act_cfg
        self.with_cp = with_cp
        self.norm_eval = norm_eval
        self._check()

        shared = dict(
            se_cfg=self.arch.get('se_cfg'),
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            with_cp=with_cp,
        )
        groups = self.arch.get('group_layer_map') or {}
        factors = self.arch['width_factor']
        channels = min(self.arch.get('stem_channels', 64), int(base_channels * factors[0]))
        self.stem = RepVGGLayer(in_channels, channels, stride=2, **shared)
        number = 1
        self.stages = []
        for i, depth in enumerate(self.arch['num_blocks']):
            width = int(base_channels * 2**i * factors[i])
            layers = []
            for j in range(depth):
                layer = RepVGGLayer(
                    channels,
                    width,
                    stride=strides[i] if j == 0 else 1,
                    dilation=dilations[i],
                    groups=groups.get(number, 1),
                    **shared,
                )
                layers.append(layer)
                channels = width
                number += 1
            self.stages.append(f'stage_{i + 1}')
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self._freeze_stages()

    def _check(self) -> None:
        num_blocks = self.arch['num_blocks']
        lengths = dict(
            num_blocks=len(num_blocks),
            width_factor=len(self.arch['width_factor']),
            strides=len(self.strides),
            dilations=len(self.dilations),
        )
        if len(set(lengths.values())) > 1:
            found = ', '.join(f'{name} {length}' for name, length in lengths.items())
            raise UserError(f'{type(self).__name__}: wanted one entry a stage in each of: {found}')
        ranges = dict(
            out_indices=(self.out_indices, 0, len(num_blocks) - 1),
            frozen_stages=([self.frozen_stages], -1, len(num_blocks)),
            group_layer_map=(self.arch.get('group_layer_map') or (), 1, sum(num_blocks)),
        )
        for name, (values, first, last) in ranges.items():
            for value in values:
                if not first <= value <= last:
                    raise UserError(
                        f'{type(self).__name__}: {name} has {value}, wanted {first} to {last}'
                    )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W) to the outputs of the stages that ``out_indices`` names."""
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = getattr(self, stage)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _freeze_stages(self) -> None:
        for name in ['stem', *self.stages][: self.frozen_stages + 1]:
            getattr(self, name).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        """Like ``nn.Module.train``, but frozen stages stay frozen."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


class OREPARepVGG(ReparamMixin, RepVGG):
    """RepVGG, re-parameterised (OREPA, sec. 4.1, "RepVGG").

    It takes the arguments of :class:`RepVGG` and those of
    :class:`mmorepa.backbones.reparam_mixin.ReparamMixin`.

    Args:
        reparam (str | dict, optional): The block, as in the mixin. ``'OREPA'`` stands here for the
            paper's block ``'OREPA-RepVGG'``: a 3x3 OREPA block, a 1x1 convolution and an identity,
            with a BatchNorm behind each. In a dict, ``shortcuts=False`` leaves out the last two and
            all BatchNorms except one, which gives the OREPA block of the ResNets. ``'RepVGG'`` is
            RepVGG itself. Defaults to ``'OREPA'``.
        args: Arguments of :class:`RepVGG`.
        kwargs: Keyword arguments of :class:`RepVGG` and of the mixin.

    Example:
        >>> backbone = OREPARepVGG('A0')
        >>> [name for name, _ in backbone.stage_1[1].branch_reparam.named_children()]
        ['original', 'pointwise', 'identity']
        >>> type(backbone.switch_to_deploy().stage_1[1].branch_reparam).__name__
        'Conv2d'
    """

    def is_reparameterized(self, name: str) -> bool:
        return name.rpartition('.')[2] == 'branch_reparam'

    def block_options(self, options: dict) -> dict:
        block = options.get('type')
        if block != 'OREPA' and 'shortcuts' in options:
            raise UserError(
                f"{type(self).__name__}: 'shortcuts' belongs to type='OREPA', not to {block!r}; "
                'leave it out'
            )
        if block == 'OREPA' and options.pop('shortcuts', True):
            options['type'] = 'OREPA-RepVGG'
        return options


def find_arch(arch: str | Mapping) -> Mapping:
    """The settings of a network by its name or dict, see :class:`RepVGG`.

    Raises:
        UserError: If there is no such name, or a dict has missing or unknown keys.
    """
    if isinstance(arch, Mapping):
        missing = [key for key in _REQUIRED if key not in arch]
        unknown = [key for key in arch if key not in _REQUIRED + _OPTIONAL]
        if missing or unknown:
            found = f'lacks {missing[0]!r}' if missing else f'has {unknown[0]!r}'
            raise UserError(
                f'RepVGG: arch {found}; wanted a dict with {", ".join(_REQUIRED)}, and perhaps '
                f'{", ".join(_OPTIONAL)}'
            )
        return arch
    if not isinstance(arch, str) or arch not in ARCHS:
        names = ', '.join(map(repr, ARCHS))
        raise UserError(f'RepVGG: arch={arch!r} is not known; choose {names}, or give a dict')
    return ARCHS[arch]
