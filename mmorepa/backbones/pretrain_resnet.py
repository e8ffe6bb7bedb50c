"""OREPA ResNets for mmpretrain."""

from mmpretrain.models import ResNet, ResNetV1c, ResNetV1d, ResNeXt
from mmpretrain.registry import MODELS

from .reparam_resnet import ReparamResNetMixin


class ReleasedInitMixin(ReparamResNetMixin):
    """Starts every residual block's last norm at one, as the released recipe does.

    Args:
        args: Arguments of :class:`ReparamResNetMixin` and of the library's network.
        zero_init_residual (bool): True starts this norm at zero, which is mmpretrain's own default.
            Defaults to False.
        kwargs: Keyword arguments of these two.
    """

    def __init__(self, *args, zero_init_residual: bool = False, **kwargs):
        super().__init__(*args, zero_init_residual=zero_init_residual, **kwargs)


@MODELS.register_module()
class OREPAResNet(ReleasedInitMixin, ResNet):
    """mmpretrain's ResNet, re-parameterised (paper, sec. 4.1).

    It takes the arguments of :class:`mmpretrain.models.ResNet` and those of
    :class:`ReparamResNetMixin`. ``zero_init_residual`` defaults to False, as in the released
    recipe. The depths are 18, 34, 50, 101 and 152. ``deep_stem=True`` gives a ResNetV1c; with
    ``avg_down=True`` as well it is a ResNetV1d.

    Example:
        >>> backbone = OREPAResNet(18)
        >>> backbone(torch.rand(1, 3, 64, 64))[0].shape
        torch.Size([1, 512, 2, 2])
    """


@MODELS.register_module()
class OREPAResNetV1c(ReleasedInitMixin, ResNetV1c):
    """mmpretrain's ResNetV1c, re-parameterised. It takes the arguments of :class:`OREPAResNet`."""


@MODELS.register_module()
class OREPAResNetV1d(ReleasedInitMixin, ResNetV1d):
    """mmpretrain's ResNetV1d, re-parameterised. It takes the arguments of :class:`OREPAResNet`."""


@MODELS.register_module()
class OREPAResNeXt(ReleasedInitMixin, ResNeXt):
    """mmpretrain's ResNeXt, re-parameterised: all convolutions, including the grouped ones.

    It takes the arguments of :class:`mmpretrain.models.ResNeXt`, 32 groups of 4 channels by
    default, and those of :class:`ReparamResNetMixin`. ``zero_init_residual`` defaults to False.

    Example:
        >>> backbone = OREPAResNeXt(50)
        >>> backbone.layer1[0].conv2.groups
        32
    """
