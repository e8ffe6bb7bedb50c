"""Fashion-MNIST: 70,000 scans of clothes, checked and put where the libraries read them.

The data set is by Xiao, Rasul and Vollgraf (2017), https://arxiv.org/abs/1708.07747: 60,000 scans
to train and 10,000 to test with, ten classes in equal numbers, 28x28 grey levels, MIT licence.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

import numpy as np

from ..errors import UserError
from .in_place import write_sets

FASHION_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
    'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip

#: Where the Debian package dataset-fashion-mnist puts the files.
DEBIAN_FOLDER = '/usr/share/datasets/fashion-mnist'
#: Where their makers do.
URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com'
#: SHA-256 of each file, unpacked: Debian packs the same contents into other bytes.
CHECKSUMS = {
    'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
    'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
    't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
    't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
}
SECONDS_TO_ANSWER = 60

FORMATS = ('mnist',)
#: One scan of twelve is held out: 5,000 of the 60,000.
HELD_OUT = 12
DATA_VERSION = 1  # to raise when the same arguments give other data


def default_source() -> str:
    """The Debian package's folder if it is there, else the URL."""
    return DEBIAN_FOLDER if Path(DEBIAN_FOLDER).is_dir() else URL


@functools.lru_cache(maxsize=1)
def read_files(source: str) -> dict[str, bytes]:
    """Read the four files, and make sure that they are Fashion-MNIST.

    Args:
        source: A folder or a URL with the four ``*-ubyte.gz`` files.

    Returns:
        What each holds, unpacked, by its name without ``.gz``.

    Raises:
        UserError: A file cannot be had, is cut off, or holds something else.
    """
    files = {}
    for name, wanted in CHECKSUMS.items():
        place = f'{source.rstrip("/")}/{name}.gz'
        # A folder is read by the same means as a URL.
        url = place if '://' in source else Path(place).resolve().as_uri()
        try:
            with urllib.request.urlopen(url, timeout=SECONDS_TO_ANSWER) as answer:
                files[name] = gzip.decompress(answer.read())
        except (OSError, EOFError, HTTPException, zlib.error) as error:
            # What is around the reason of a link says nothing; a status says more than its reason.
            bare = type(error) is urllib.error.URLError
            raise UserError(
                f'cannot read {place} ({error.reason if bare else error}): try again, install '
                'the Debian package dataset-fashion-mnist, or name another --source'
            ) from None
        found = hashlib.sha256(files[name]).hexdigest()
        if found != wanted:
            raise UserError(
                f'{place} is not the file of Fashion-MNIST: its content has SHA-256 {found[:12]}…, '
                f'wanted {wanted[:12]}…; get it again, or name another --source'
            )
    return files


def read_scans(source: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The scans of one part, and what they show.

    Args:
        source: As for :func:`read_files`.
        part: ``'train'`` or ``'t10k'``.

    Returns:
        The scans, uint8 grey levels 0 (ground) to 255, (N, 28, 28), and the classes, uint8, (N,).

    Raises:
        UserError: As :func:`read_files`.
    """
    files = read_files(source)
    labels = np.frombuffer(files[f'{part}-labels-idx1-ubyte'], np.uint8, offset=8)
    scans = np.frombuffer(files[f'{part}-images-idx3-ubyte'], np.uint8, offset=16)
    return scans.reshape(len(labels), 28, 28), labels


def hold_out(labels: np.ndarray) -> np.ndarray:
    """Choose the scans of the training part that rates are chosen on; always the same ones.

    Args:
        labels: (N,) classes.

    Returns:
        Whether each is held out, bool, (N,): one of twelve of each class, at random.
    """
    rng = np.random.default_rng(0)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        there = rng.permutation(np.flatnonzero(labels == label))
        held[there[: len(there) // HELD_OUT]] = True
    return held


def write_fashion(
    out: str | os.PathLike,
    formats: Sequence[str] = FORMATS,
    source: str | None = None,
    force: bool = False,
) -> dict[str, bool]:
    """Write several sets; if one of them is refused, none is written.

    ``OUT/mnist/full`` gets the four files as they are, for mmpretrain's ``dict(type='FashionMNIST',
    data_root='OUT/mnist/full', split='train', download=False)``. ``OUT/mnist/held_out`` is laid out
    alike, and all of it comes out of the training part: 55,000 scans to train and 5,000 to test
    with. Whoever chooses by the latter has never seen the test part.

    Args:
        out: Folder that gets one folder a format.
        formats: Any of ``'mnist'``.
        source: As for :func:`read_files`. By default :func:`default_source`.
        force: Write again what an earlier run made with other arguments.

    Returns:
        For each format, True if it was written and False if it was there already, made with the
        same arguments.

    Raises:
        UserError: An argument is out of range, the files cannot be had, or something else is there
            (only what this module wrote is ever replaced), or the folder cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f'format {unknown[0]!r} is unknown: want any of {", ".join(FORMATS)}')
    source = source or default_source()
    builders = {name: functools.partial(_BUILDERS[name], source) for name in formats}
    return write_sets(out, {name: {} for name in formats}, builders, 'fashion', DATA_VERSION, force)


def _build_mnist(source: str, root: Path) -> None:
    files = read_files(source)
    for folder in ('full', 'held_out'):
        (root / folder).mkdir()
    for name, content in files.items():
        (root / 'full' / name).write_bytes(content)
    scans, labels = read_scans(source, 'train')
    held = hold_out(labels)
    for part, chosen in (('train', ~held), ('t10k', held)):
        for kind, values in (('images-idx3', scans[chosen]), ('labels-idx1', labels[chosen])):
            (root / 'held_out' / f'{part}-{kind}-ubyte').write_bytes(_idx(values))


def _idx(values: np.ndarray) -> bytes:
    """An array of uint8 in the format of MNIST: type and axes, sizes as big-endian, values."""
    header = np.array([0x0800 + values.ndim, *values.shape], '>u4')
    return header.tobytes() + values.tobytes()


_BUILDERS: dict[str, Callable[..., None]] = {'mnist': _build_mnist}
