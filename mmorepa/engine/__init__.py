"""What MMEngine has to know: the convolution, the deploy form, the optimizer's rules."""

from mmengine.registry import MODELS

from ..convs import OREPAConv2d
from .deploy_form import build_deploy_form
from .optim_wrapper_constructor import OREPAOptimWrapperConstructor

MODELS.register_module(module=OREPAConv2d)

__all__ = ['OREPAOptimWrapperConstructor', 'build_deploy_form']
