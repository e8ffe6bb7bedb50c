"""OREPA ResNets for mmdet."""

from mmdet.models import ResNet, ResNetV1d, ResNeXt
from mmdet.registry import MODELS

from .reparam_resnet import ReparamResNetMixin


@MODELS.register_module()
class OREPAResNet(ReparamResNetMixin, ResNet):
    """mmdet's ResNet, re-parameterised (paper, sec. 4.2).

    It takes the arguments of mmdet's ResNet, with the same defaults, and those of
    :class:`ReparamResNetMixin`. ``deep_stem=True`` gives a ResNetV1c; with ``avg_down=True`` as
    well it is a ResNetV1d.

    Example:
        >>> backbone = OREPAResNet(18)
        >>> [tuple(out.shape[1:]) for out in backbone(torch.rand(1, 3, 64, 64))]
        [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    """


@MODELS.register_module()
class OREPAResNetV1d(ReparamResNetMixin, ResNetV1d):
    """mmdet's ResNetV1d, re-parameterised. It takes the arguments of :class:`OREPAResNet`."""


@MODELS.register_module()
class OREPAResNeXt(ReparamResNetMixin, ResNeXt):
    """mmdet's ResNeXt, re-parameterised: all convolutions, including the grouped ones.

    It takes the arguments of mmdet's ResNeXt and those of :class:`ReparamResNetMixin`.

    Example:
        >>> backbone = OREPAResNeXt(depth=50, groups=32, base_width=4)
        >>> backbone.layer1[0].conv2.groups
        32
    """
