"""The network of a config, as a checkpoint has it or as training starts; and its data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner, set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoints import load_any_form, load_checkpoint
from ..checkpoints.conversion import build_model
from ..convs import ReparamConv2d
from ..errors import UserError
from .quiet import quiet_mmengine

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
    set_random_seed(seed_of(cfg))
    model = build_model(cfg)
    has_blocks = any(isinstance(module, ReparamConv2d) for module in model.modules())
    if training_form and not has_blocks:
        raise UserError(
            f'{type(model).__name__} has no generated kernels: wanted a model with blocks, in '
            f'training form, which {Path(cfg.filename).name} does not build'
        )
    checkpoint = checkpoint or cfg.get('load_from')
    if checkpoint:
        form = load_any_form(model, load_checkpoint(checkpoint)['state_dict'], str(checkpoint))
        if training_form and form != 'training':
            raise UserError(
                f'{checkpoint} is in {form} form and has no generated kernels: '
                'give the checkpoint that it was converted from'
            )
    else:
        with quiet_mmengine():
            model.init_weights()
    return Network(
        model=revert_sync_batchnorm(model).to(get_device()).eval(),
        config=Path(cfg.filename).name,
        checkpoint=Path(checkpoint).name if checkpoint else FRESH,
    )


def seed_of(cfg: Config) -> int:
    """The seed of a config; 0 if it has none."""
    return cfg.get('randomness', {}).get('seed') or 0


def load_data(cfg: Config, name: str) -> DataLoader:
    """A dataloader of a config, in the order that its seed gives.

    Args:
        cfg (Config): See :func:`load_network`.
        name (str): ``'train_dataloader'``, ``'val_dataloader'`` or ``'test_dataloader'``.

    Raises:
        UserError: If the config has none, or the data is not there.
    """
    if cfg.get(name) is None:
        raise UserError(f'{Path(cfg.filename).name} has no {name}: wanted one')
    try:
        return Runner.build_dataloader(cfg[name], seed=seed_of(cfg))
    except FileNotFoundError as error:
        use = dict(train='training', val='validation', test='test')[name.partition('_')[0]]
        raise UserError(
            f'the {use} data of the config is not there: {str(error).splitlines()[0]}; '
            f'give its place with --cfg-options {name}.dataset.data_root=FOLDER'
        ) from None
