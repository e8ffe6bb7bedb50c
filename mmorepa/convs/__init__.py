"""The convolutions: torch only, no OpenMMLab package needed."""

from .acnet import ACNetConv2d
from .dbb import DBBConv2d
from .deploy import Agreement, squeeze, switch_to_deploy, verify
from .expand import ExpandConv2d
from .mobileone import MobileOneConv2d
from .orepa import OREPAConv2d
from .reparam import ReparamConv2d
from .reparameterize import reparameterize
from .repvgg import OREPARepVGGConv2d, RepVGGConv2d
from .squeezed import SqueezedTraining
from .tweaked import TweakedOREPAConv2d

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
    'reparameterize',
    'squeeze',
    'switch_to_deploy',
    'verify',
]
