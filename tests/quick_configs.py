"""MMEngine's configs without what takes longer than a test: it changes no result."""

import contextlib
import functools

from mmengine.config import config, utils
from mmengine.utils import get_installed_path


def quicken() -> None:
    """Have this process read each metafile once, and lay no config out."""
    # For each base of a library all metafiles of that library are read: two seconds a segmentor.
    utils.load = functools.cache(utils.load)
    # The Runner has yapf lay its config out several times.
    config.FormatCode = lambda text, **options: (text, True)


def read_metafiles(*packages: str) -> None:
    """Read the metafiles of these packages, for the processes that are forked from this one."""
    for package in packages:
        with contextlib.suppress(ValueError):  # no config has that name
            utils._get_cfg_metainfo(get_installed_path(package), '')
