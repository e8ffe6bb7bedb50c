"""MMEngine without what takes longer than a test: it changes no result."""

import contextlib
import functools
from types import SimpleNamespace

from mmengine.config import config, utils
from mmengine.dataset import base_dataset
from mmengine.utils import get_installed_path, package_utils
from torch.utils.data._utils import worker


def quicken() -> None:
    """Have this process read each metafile once, lay no config out, and collect no garbage."""
    # For each base of a library all metafiles of that library are read: two seconds a segmentor.
    utils.load = functools.cache(utils.load)
    # That a library is installed is found out anew for each base, by reloading pkg_resources.
    config.is_installed = package_utils.is_installed = functools.cache(config.is_installed)
    # The Runner has yapf lay its config out several times.
    config.FormatCode = lambda text, **options: (text, True)
    # Each data set collects all garbage after it is made small: half a second, the libraries' too.
    base_dataset.gc = SimpleNamespace(collect=lambda: 0)
    # A worker of a loader that ends with its process looks every five seconds whether to end too.
    worker.MP_STATUS_CHECK_INTERVAL = 0.1


def read_metafiles(*packages: str) -> None:
    """Read the metafiles of these packages, for the processes that are forked from this one."""
    for package in packages:
        with contextlib.suppress(ValueError):  # no config has that name
            utils._get_cfg_metainfo(get_installed_path(package), '')
