"""The network of a config, as a checkpoint has it or as training starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import set_random_seed
from torch import nn

from ..checkpoints import build_model, load_checkpoint, load_form
from ..convs import ReparamConv2d
from ..engine.data import seed_of
from ..engine.load_from import fitting_tensors
from ..engine.quiet import quiet_mmengine
from ..errors import UserError

#: What a network without a checkpoint is called.
FRESH = 'the start of training'


@dataclass(frozen=True)
class Network:
    """A network, and where it comes from.

    Attributes:
        model (nn.Module): In eval mode, on the device that MMEngine chooses.
        config (str): The config's file name.
        checkpoint (str): The checkpoint's file name, or :data:`FRESH`.
    """

    model: nn.Module
    config: str
    checkpoint: str

    def __str__(self) -> str:
        return f'{self.config}, {self.checkpoint}'


def load_network(
    cfg: Config,
    checkpoint: str | os.PathLike | None = None,
    training_form: bool = True,
) -> Network:
    """Build the network of a config and load its weights.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg, from ``load_config``.
        checkpoint (str | os.PathLike, optional): By default the network is as training starts:
            freshly initialised, or from the config's ``load_from`` and ``init_cfg``.
        training_form (bool): Whether it has to have blocks. Defaults to True; False takes any
            form.

    Returns:
        Network: See there.

    Raises:
        UserError: If the checkpoint does not fit, or there are no blocks where there have to be.
    """
    start = None if checkpoint else cfg.get('load_from')
    set_random_seed(seed_of(cfg))
    model = build_model(cfg)
    has_blocks = any(isinstance(module, ReparamConv2d) for module in model.modules())
    if training_form and not has_blocks:
        raise UserError(
            f'{type(model).__name__} has no generated kernels: wanted a model with blocks, in '
            f'training form, which {Path(cfg.filename).name} does not build'
        )
    if checkpoint:
        load_form(model, checkpoint, 'training' if training_form else None)
    elif start and not training_form:
        load_form(model, start)
    elif start:
        # As training does: blocks imitate the convolutions of a plain network.
        source = f'{start}, the load_from of the config,'
        state_dict = load_checkpoint(start)['state_dict']
        model.load_state_dict(fitting_tensors(model, state_dict, source)[0], strict=False)
    else:
        with quiet_mmengine():
            model.init_weights()
    return Network(
        model=revert_sync_batchnorm(model).to(get_device()).eval(),
        config=Path(cfg.filename).name,
        checkpoint=Path(checkpoint or start).name if checkpoint or start else FRESH,
    )
