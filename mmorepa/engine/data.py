"""The data of a config."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..errors import UserError

#: What data is for, by the first part of the name that its loader has in a config.
USES = dict(train='training', val='validation', test='test')


def build_loader(cfg: Config, name: str, loader: ConfigDict | None = None) -> DataLoader:
    """A data loader of a config, in the order that its seed gives; its scope becomes the default.

    Args:
        cfg (Config): Of any OpenMMLab library.
        name (str): ``'train_dataloader'``, ``'val_dataloader'`` or ``'test_dataloader'``.
        loader (ConfigDict, optional): What to build in the place of the one of that name.

    Raises:
        UserError: If the config has none, or its files are missing.
    """
    loader = cfg.get(name) if loader is None else loader
    if loader is None:
        raise UserError(f'{Path(cfg.filename).name} has no {name}: wanted one')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    try:
        return Runner.build_dataloader(loader, seed=seed_of(cfg))
    except FileNotFoundError as error:
        raise UserError(
            f'the {USES[name.partition("_")[0]]} data of the config is not there: '
            f'{str(error).splitlines()[0]}; give its place with --cfg-options '
            f'{name}.dataset.data_root=FOLDER'
        ) from None


def seed_of(cfg: Config) -> int:
    """The seed of a config; 0 if it has none."""
    return cfg.get('randomness', {}).get('seed') or 0
