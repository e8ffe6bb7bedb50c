"""Automatic mixed precision on the CPU, to try a training with it where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..config_types import is_of_type
from ..errors import UserError


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper`` for the CPU, where the original refuses to be built.

    Args:
        loss_scale (str | float | dict): ``'dynamic'``, a fixed scale, or arguments of
            ``torch.amp.GradScaler``. Defaults to ``'dynamic'``.
        dtype (str, optional): ``'bfloat16'``, the default, or ``'float16'``.
        kwargs: Arguments of ``OptimWrapper``.

    Raises:
        UserError: If ``loss_scale`` or ``dtype`` is something else.
    """

    def __init__(
        self, loss_scale: str | float | dict = 'dynamic', dtype: str | None = None, **kwargs
    ):
        # Not the parent's constructor, which asks for a GPU.
        OptimWrapper.__init__(self, **kwargs)
        dtype = dtype or 'bfloat16'
        if dtype not in ('bfloat16', 'float16'):
            raise UserError(f"AMP on the CPU has dtype={dtype!r}: wanted 'bfloat16' or 'float16'")
        self.cast_dtype = getattr(torch, dtype)
        self._scale_update_param = None
        if loss_scale == 'dynamic':
            options = {}
        elif isinstance(loss_scale, float):
            options = dict(init_scale=loss_scale)
            self._scale_update_param = loss_scale
        elif isinstance(loss_scale, dict):
            options = loss_scale
        else:
            raise UserError(
                f"loss_scale is {loss_scale!r}: wanted 'dynamic', a float or a dict for GradScaler"
            )
        self.loss_scaler = torch.amp.GradScaler('cpu', **options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast; no synchronisation of gradients while they are accumulated."""
        # On a CPU MMEngine's autocast accepts bfloat16 only.
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', self.cast_dtype):
            yield


def prepare(cfg: Config) -> None:
    """Use :class:`CPUAmpOptimWrapper` if a config names MMEngine's wrapper and there is no GPU.

    Args:
        cfg (Config): Changed in place.
    """
    accelerated = is_cuda_available() or is_mlu_available() or is_musa_available()
    wrapper = cfg.get('optim_wrapper') or {}
    if is_of_type(wrapper, 'AmpOptimWrapper') and not (accelerated or is_npu_available()):
        wrapper['type'] = 'mmorepa.CPUAmpOptimWrapper'
