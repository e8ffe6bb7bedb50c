"""OREPA ResNets for mmseg."""

from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d, ResNeXt
from mmseg.registry import MODELS

from .reparam_resnet import ReparamResNetMixin


@MODELS.register_module()
class OREPAResNet(ReparamResNetMixin, ResNet):
    """mmseg's ResNet, re-parameterised (paper, sec. 4.2).

    It takes the arguments of mmseg's ResNet, with the same defaults, and those of
    :class:`ReparamResNetMixin`. ``deep_stem=True`` gives a ResNetV1c; with ``avg_down=True`` as
    well it is a ResNetV1d.

    Example:
        >>> backbone = OREPAResNet(50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
        >>> [tuple(out.shape[1:]) for out in backbone(torch.rand(2, 3, 64, 64))]
        [(256, 16, 16), (512, 8, 8), (1024, 8, 8), (2048, 8, 8)]
    """


@MODELS.register_module()
class OREPAResNetV1c(ReparamResNetMixin, ResNetV1c):
    """mmseg's ResNetV1c, re-parameterised. It takes the arguments of :class:`OREPAResNet`."""


@MODELS.register_module()
class OREPAResNetV1d(ReparamResNetMixin, ResNetV1d):
    """mmseg's ResNetV1d, re-parameterised. It takes the arguments of :class:`OREPAResNet`."""


@MODELS.register_module()
class OREPAResNeXt(ReparamResNetMixin, ResNeXt):
    """mmseg's ResNeXt, re-parameterised: all convolutions, including the grouped ones.

    It takes the arguments of mmseg's ResNeXt and those of :class:`ReparamResNetMixin`.

    Example:
        >>> backbone = OREPAResNeXt(depth=50, groups=32, base_width=4)
        >>> backbone.layer1[0].conv2.groups
        32
    """
