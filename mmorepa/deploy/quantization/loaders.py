"""Data loaders of a config."""

from __future__ import annotations

from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ...errors import UserError


def build_loader(cfg: Config, loader: ConfigDict, split: str) -> DataLoader:
    """Build a data loader, with its library's scope as default and the config's seed.

    Args:
        cfg (Config): Of any OpenMMLab library.
        loader (ConfigDict): One of its data loaders.
        split (str): ``'train'`` or ``'test'``, for the error.

    Raises:
        UserError: If its files are missing.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    try:
        return Runner.build_dataloader(loader, seed=seed_of(cfg))
    except FileNotFoundError as error:
        raise UserError(
            f'the {split} data of the config is not there: {str(error).splitlines()[0]}; '
            f'give its place with --cfg-options {split}_dataloader.dataset.data_root=FOLDER'
        ) from None


def seed_of(cfg: Config) -> int:
    """The seed in the config, 0 if it has none."""
    return cfg.get('randomness', {}).get('seed') or 0
