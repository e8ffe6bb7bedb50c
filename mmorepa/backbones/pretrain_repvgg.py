"""OREPARepVGG for mmpretrain: the network is the same in every library."""

from mmpretrain.registry import MODELS

from .repvgg_network import OREPARepVGG

MODELS.register_module(module=OREPARepVGG)

__all__ = ['OREPARepVGG']
