"""What MMEngine has to know: the convolutions, the deploy form, the optimizer's rules."""

from mmengine.registry import MODELS

from ..convs import ExpandConv2d, OREPAConv2d
from .deploy_form import build_deploy_form
from .optim_wrapper_constructor import OREPAOptimWrapperConstructor

MODELS.register_module(module=OREPAConv2d)
MODELS.register_module(module=ExpandConv2d)

__all__ = ['OREPAOptimWrapperConstructor', 'build_deploy_form']
