"""The convolutions. They need torch only, no OpenMMLab package."""

from .blocks.acnet import ACNetConv2d
from .blocks.dbb import DBBConv2d
from .blocks.expandnet import ExpandConv2d
from .blocks.mobileone import MobileOneConv2d
from .blocks.repvgg import OREPARepVGGConv2d, RepVGGConv2d
from .blocks.tweaked import TweakedOREPAConv2d
from .check_optimizer import check_optimizer
from .convert.reparameterize import reparameterize
from .convert.squeezing import Agreement, squeeze, switch_to_deploy, verify
from .orepa.block import OREPAConv2d
from .orepa.squeezed_training import SqueezedTraining
from .reparam import ReparamConv2d

__all__ = [
    'ACNetConv2d',
    'Agreement',
    'DBBConv2d',
    'ExpandConv2d',
    'MobileOneConv2d',
    'OREPAConv2d',
    'OREPARepVGGConv2d',
    'RepVGGConv2d',
    'ReparamConv2d',
    'SqueezedTraining',
    'TweakedOREPAConv2d',
    'check_optimizer',
    'reparameterize',
    'squeeze',
    'switch_to_deploy',
    'verify',
]
