"""The convolutions: torch only, no OpenMMLab package needed."""

from .deploy import Agreement, squeeze, switch_to_deploy, verify
from .orepa import OREPAConv2d

__all__ = ['Agreement', 'OREPAConv2d', 'squeeze', 'switch_to_deploy', 'verify']
