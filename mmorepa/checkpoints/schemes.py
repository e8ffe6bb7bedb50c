"""Published checkpoints by name, such as ``torchvision://resnet50``, and files behind a URL.

The names are MMEngine's tables. Files are kept in torch's own folder for downloads,
``torch.hub.get_dir()``, where torchvision and MMEngine keep theirs.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint

from ..errors import UserError, first_line
from .state_dict import one_line

#: The tables of names by scheme.
SCHEMES: dict[str, Callable[[], Mapping[str, str]]] = {
    'torchvision': mmengine_checkpoint.get_torchvision_models,
    'modelzoo': mmengine_checkpoint.get_torchvision_models,
    'open-mmlab': mmengine_checkpoint.get_external_models,
    'openmmlab': mmengine_checkpoint.get_external_models,
    'mmcls': mmengine_checkpoint.get_mmcls_models,
}
#: What is said of a page in the place of a checkpoint, by its URL.
DEAD = '{} is a web page, no checkpoint: the link is dead, take another'
#: The first digits of a file's SHA-256, which names of published files end with.
DIGEST = re.compile(r'[-_]([a-f0-9]{8,})\.\w+$')


def url_of(path: str) -> str:
    """The URL that a name stands for; what is no name comes back as it is.

    Args:
        path (str): Such as ``torchvision://resnet50``, a URL, or a path.

    Raises:
        UserError: If there is no such name; says which are like it.
    """
    scheme, separator, name = path.partition('://')
    if not separator or scheme not in SCHEMES:
        return path
    urls = SCHEMES[scheme]()
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in urls:
        alike = difflib.get_close_matches(name, urls, 3) or sorted(urls)[:3]
        raise UserError(f'{path}: {scheme} has no {one_line(name)}; it has {", ".join(alike)}')
    return urls[name]


def fetched(url: str) -> Path:
    """The file behind a URL, downloaded unless it is there.

    Where the file's name ends with digits of its SHA-256 they are checked.

    Args:
        url (str): ``http://`` or ``https://``.

    Raises:
        UserError: If it cannot be downloaded, or is not the file that its name says.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not name:
        raise UserError(f'{url} names no file')
    if path.is_file() and not is_page(path):
        return path
    digest = DIGEST.search(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
    except RuntimeError as error:  # of another digest
        raise UserError(f'{url} is not the file that its name says: {one_line(error)}') from None
    except Exception as error:  # of the network, in many ways
        raise UserError(f'{url} cannot be read: {one_line(first_line(error))}') from None
    if is_page(path):
        path.unlink()
        raise UserError(DEAD.format(url))
    return path


def is_page(path: str | os.PathLike) -> bool:
    """Whether a file is a web page, which dead links return in the place of a checkpoint."""
    with open(path, 'rb') as file:
        return file.read(64).lstrip().startswith(b'<')
