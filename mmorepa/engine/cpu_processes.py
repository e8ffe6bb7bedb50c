"""Several processes on CPUs over gloo, to try a distributed training where there is no GPU."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """MMEngine's ``MMDistributedDataParallel`` for the CPU.

    On the CPU the wrapper must not name a device, and ``SyncBN`` cannot run. ``SyncBN`` is turned
    into ``BN``, as MMEngine does for a single process.

    Args:
        module (nn.Module): The model.
        device_ids (optional): MMEngine passes it; it is not used.
        kwargs: Arguments of ``MMDistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, device_ids=None, **kwargs):
        super().__init__(module=revert_sync_batchnorm(module), **kwargs)


def prepare(cfg: Config) -> None:
    """Start gloo and set the wrapper, if a launcher started this process and there is no GPU.

    Args:
        cfg (Config): Gets a ``model_wrapper_cfg`` if it has none.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    # MMEngine's own start would ask for a CUDA device.
    torch.distributed.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='CPUDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )
