"""BatchNorms, and those of timm that have an activation inside."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

#: timm's BatchNorms with a drop layer and an activation, ``drop`` and ``act``, behind them.
WITH_ACTIVATION = ('BatchNormAct2d', 'SyncBatchNormAct')


def is_batch_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm and nothing more, or one of :data:`WITH_ACTIVATION`."""
    if not isinstance(module, _BatchNorm) or not {'weight', 'bias'} <= module._parameters.keys():
        return False  # or it is parametrized
    if type(module).__call__ is not nn.Module.__call__:
        return False
    return (
        type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        or type(module).__name__ in WITH_ACTIVATION
    )


def norm_alone(norm: _BatchNorm) -> type[_BatchNorm]:
    """The class of a BatchNorm; of one with an activation the class that only normalises."""
    if type(norm).__name__ not in WITH_ACTIVATION:
        return type(norm)
    return nn.SyncBatchNorm if isinstance(norm, nn.SyncBatchNorm) else nn.BatchNorm2d


def rest_of(norm: nn.Module) -> nn.Module:
    """What stays of a BatchNorm when its normalisation is folded: its children, one by one."""
    children = OrderedDict(norm.named_children())
    return nn.Sequential(children) if children else nn.Identity()
