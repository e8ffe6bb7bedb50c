"""OREPARepVGG for mmseg: the network is the same in every library."""

from mmseg.registry import MODELS

from .repvgg_network import OREPARepVGG

MODELS.register_module(module=OREPARepVGG)

__all__ = ['OREPARepVGG']
