"""What is registered with MMEngine: the convolutions, the deploy form, hooks, optimizer rules."""

from mmengine.registry import MODELS

from ..convs import ExpandConv2d, OREPAConv2d, TweakedOREPAConv2d
from .accumulated_gradients import AccumulatedGradientsHook
from .compiling import EagerOptimizerHook
from .cpu_amp import CPUAmpOptimWrapper
from .deploy_form import build_deploy_form
from .freezing import FreezeStagesHook
from .kernel_logger_hook import KernelLoggerHook
from .load_from import LoadFromHook
from .non_finite import NonFiniteHook
from .optim_wrapper_constructor import OREPAOptimWrapperConstructor
from .safe_resume import SafeResumeHook
from .seeding import IterSeedHook, SeededBatchSampler
from .squeezed_step import SqueezedTrainingHook

MODELS.register_module(module=OREPAConv2d)
MODELS.register_module(module=ExpandConv2d)
MODELS.register_module(module=TweakedOREPAConv2d)

__all__ = [
    'AccumulatedGradientsHook',
    'CPUAmpOptimWrapper',
    'EagerOptimizerHook',
    'FreezeStagesHook',
    'IterSeedHook',
    'KernelLoggerHook',
    'LoadFromHook',
    'NonFiniteHook',
    'OREPAOptimWrapperConstructor',
    'SafeResumeHook',
    'SeededBatchSampler',
    'SqueezedTrainingHook',
    'build_deploy_form',
]
