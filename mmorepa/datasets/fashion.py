"""Fashion-MNIST: 70,000 scans of clothes, checked, as MNIST, COCO and Cityscapes sets.

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
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UserError
from .canvases import (
    PALETTE,
    SPLITS,
    Canvas,
    builders,
    check_arguments,
    check_split,
    deal,
)
from .in_place import write_sets

FASHION_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
    'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip

SEG_CLASSES = (*FASHION_CLASSES, 'background')
SEG_PALETTE = PALETTE

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

FORMATS = ('mnist', 'coco', 'cityscapes')
DEFAULT_CANVASES = (1600, 400)  # train, val
DEFAULT_CANVAS_SIZE = 160  # pixels
#: The part of Fashion-MNIST that each split of the canvases is dealt from.
PARTS = dict(zip(SPLITS, ('train', 't10k')))

#: One scan of twelve is held out: 5,000 of the 60,000.
HELD_OUT = 12
DATA_VERSION = 1  # to raise when the same arguments give other data

SCANS_PER_CANVAS = (3, 7)  # fewest and most
SCALES = (6, 5, 4, 3)  # a scan is one part of so many of the canvas's width
SHAPES_PER_CANVAS = (4, 9)
CUTTINGS_PER_CANVAS = (2, 6)
PLACING_TRIES = 20
SEEN = 0.4  # a scan stays while so much of it is seen
CLOTH_LEVEL = 24  # of 255: what is darker is the ground of a scan


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


def scatter(
    split: str,
    count: int,
    size: int = DEFAULT_CANVAS_SIZE,
    seed: int = 0,
    source: str | None = None,
) -> Iterator[Canvas]:
    """Scatter the scans of one part over canvases, on textured ground among clutter.

    A canvas is dealt 3 to 7 scans, each a sixth to a third of it wide and high, or up to a fifth
    less; some are mirrored, each has a colour of its own, and they may cover each other. One is
    left out where too little of it or of others would be seen. The clutter is shapes, and cuttings
    of scans of the same part that are no objects.

    Args:
        split: ``'train'``, of the training part, or ``'val'``, of the test part.
        count: Number of canvases; canvas ``i`` does not depend on it.
        size: Width and height of a canvas in pixels, at least 48.
        seed: Seed of everything random, at least 0.
        source: As for :func:`read_files`. By default :func:`default_source`.

    Yields:
        ``count`` canvases; their ``scans`` are indices into the part.

    Raises:
        UserError: An argument is out of range, or the files cannot be had.
    """
    check_split(split)
    check_arguments((count, count), size, seed)
    scans, labels = read_scans(source or default_source(), PARTS[split])

    def draw(hand: np.ndarray, rng: np.random.Generator) -> Canvas:
        return _draw_canvas(scans, labels, hand, size, rng)

    return deal(np.arange(len(labels)), split, count, seed, SCANS_PER_CANVAS, draw)


def write_fashion(
    out: str | os.PathLike,
    formats: Sequence[str] = FORMATS,
    canvases: Sequence[int] = DEFAULT_CANVASES,
    size: int = DEFAULT_CANVAS_SIZE,
    seed: int = 0,
    force: bool = False,
    source: str | None = None,
) -> dict[str, bool]:
    """Write several sets; if one of them is refused, none is written.

    ``OUT/mnist/full`` gets the four files as they are, for mmpretrain's ``dict(type='FashionMNIST',
    data_root='OUT/mnist/full', split='train', download=False)``. ``OUT/mnist/held_out`` is laid out
    alike, and all of it comes out of the training part: 55,000 scans to train and 5,000 to test
    with. Whoever chooses by the latter has never seen the test part.

    ``OUT/coco`` and ``OUT/cityscapes`` get the canvases of :func:`scatter`, laid out and read as
    those of :mod:`mmorepa.datasets.digits`, with the classes of this module.

    Args:
        out: Folder that gets one folder a format.
        formats: Any of ``'mnist'``, ``'coco'`` and ``'cityscapes'``.
        canvases: Numbers of COCO and Cityscapes pictures for train and val.
        size: Width and height of those pictures in pixels, at least 48.
        seed: Seed of the scattering, at least 0.
        force: Write again what an earlier run made with other arguments.
        source: As for :func:`read_files`. By default :func:`default_source`.

    Returns:
        For each format, True if it was written and False if it was there already, made with the
        same arguments.

    Raises:
        UserError: An argument is out of range, the files cannot be had, or something else is there
            (only what this module wrote is ever replaced), or the folder cannot be written.
    """
    source = source or default_source()
    arguments = check_arguments(canvases, size, seed)
    plan = {name: {} if name == 'mnist' else arguments for name in formats}
    builds = {
        'mnist': functools.partial(_build_mnist, source),
        **builders(
            functools.partial(scatter, source=source),
            FASHION_CLASSES,
            supercategory='clothes',
            kind='fashion',
            info={'description': 'Fashion-MNIST, scattered', 'version': DATA_VERSION},
        ),
    }
    return write_sets(out, plan, builds, 'fashion', DATA_VERSION, force)


# Drawing. Pillow resizes 8-bit pictures in integers, so the pixels are alike on every machine.


def _enlarge(scan: np.ndarray, width: int, height: int) -> np.ndarray:
    """Grey levels (H, W) in uint8, smoothly to (height, width)."""
    return np.asarray(Image.fromarray(scan).resize((width, height), Image.Resampling.BICUBIC))


def _draw_ground(size: int, rng: np.random.Generator) -> Image.Image:
    """Ground of (size, size): colour clouds, stripes across them, and shapes."""
    clouds = rng.integers(0, 200, (int(rng.integers(3, 9)),) * 2 + (3,), dtype=np.uint8)
    ground = Image.fromarray(clouds).resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(ground)
    gap, slope = int(rng.integers(6, 24)), int(rng.integers(-size, size + 1))
    colour = tuple(rng.integers(0, 200, 3).tolist())
    for start in range(-size, 2 * size, gap):
        pen.line([start, 0, start + slope, size], fill=colour, width=int(rng.integers(1, 3)))
    for _ in range(rng.integers(*SHAPES_PER_CANVAS, endpoint=True)):
        left, top = rng.integers(-size // 8, size, 2).tolist()
        width, height = rng.integers(size // 16, size // 3, 2).tolist()
        shape = (pen.ellipse, pen.rectangle, pen.line)[rng.integers(3)]
        shape(
            [left, top, left + width, top + height],
            fill=tuple(rng.integers(0, 256, 3).tolist()),
            width=int(rng.integers(1, 5)),
        )
    return ground


def _paint(image: np.ndarray, cloth: np.ndarray, spot: tuple, colour: np.ndarray) -> None:
    """Paint a scan in a colour into ``image``, (size, size, 3) in int64."""
    grey = cloth[..., None].astype(np.int64)
    # The darkest cloth keeps a third of its colour, or it would be a hole.
    painted = colour * (128 + grey) // 383
    image[spot] = np.where(grey >= CLOTH_LEVEL, painted, image[spot])


def _draw_canvas(
    scans: np.ndarray, labels: np.ndarray, hand: np.ndarray, size: int, rng: np.random.Generator
) -> Canvas:
    """Draw the scans of ``hand``, later ones over earlier ones."""
    image = np.asarray(_draw_ground(size, rng)).astype(np.int64)

    def place(scan: np.ndarray) -> tuple[np.ndarray, tuple, np.ndarray]:
        side = size // SCALES[rng.integers(len(SCALES))]
        width, height = rng.integers(side * 4 // 5, side + 1, 2).tolist()
        top, left = (int(rng.integers(0, size - length + 1)) for length in (height, width))
        cloth = _enlarge(scan[:, :: rng.choice((-1, 1))], width, height)
        return cloth, np.s_[top : top + height, left : left + width], rng.integers(60, 256, 3)

    cuttings = rng.integers(*CUTTINGS_PER_CANVAS, endpoint=True)
    for scan in rng.integers(0, len(scans), cuttings).tolist():
        top, left = rng.integers(0, 15, 2).tolist()
        _paint(image, *place(scans[scan][top : top + 14, left : left + 14]))

    whole, seen, placed = [], [], []
    for scan in hand.tolist():
        for _ in range(PLACING_TRIES):
            cloth, spot, colour = place(scans[scan])
            mask = np.zeros((size, size), dtype=bool)
            mask[spot] = cloth >= CLOTH_LEVEL
            left_over = [old & ~mask for old in seen]
            if mask.any() and all(
                rest.sum() >= SEEN * full for rest, full in zip(left_over, whole)
            ):
                break
        else:
            continue
        _paint(image, cloth, spot, colour)
        whole.append(mask.sum())
        seen = [*left_over, mask]
        placed.append(scan)
    grain = rng.integers(-8, 9, image.shape)
    return Canvas(
        image=np.clip(image + grain, 0, 255).astype(np.uint8),
        masks=np.stack(seen),
        labels=tuple(labels[placed].tolist()),
        scans=tuple(placed),
    )


# Building the set of MNIST in a new folder


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
