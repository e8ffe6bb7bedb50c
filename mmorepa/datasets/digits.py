"""scikit-learn's 1,797 scanned digits, written as ImageNet, COCO and Cityscapes.

The scans (8x8 pixels, 17 grey levels) come inside scikit-learn, so nothing is downloaded. They
are split once, and no scan is in both the train and the val part of any of the three sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UserError
from .canvases import (
    PALETTE,
    Canvas,
    box,
    builders,
    check_arguments,
    check_split,
    deal,
    save,
)
from .in_place import write_sets

DIGITS_CLASSES = (
    'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'
)  # fmt: skip
DIGITS_PALETTE = PALETTE[:-1]
# Sorted by name, the folders are in digit order: the label of a folder is its digit.
DIGITS_FOLDERS = tuple(f'{digit}_{name}' for digit, name in enumerate(DIGITS_CLASSES))
SEG_CLASSES = (*DIGITS_CLASSES, 'background')
SEG_PALETTE = PALETTE

FORMATS = ('imagenet', 'coco', 'cityscapes')
DEFAULT_CANVASES = (400, 100)  # train, val
DEFAULT_CANVAS_SIZE = 160  # pixels
DEFAULT_IMAGE_SIZE = 64  # pixels

VAL_FRACTION = 0.2
MAX_LEVEL = 16  # the whitest grey level of a scan
DIGITS_PER_CANVAS = (2, 5)  # fewest and most
PLACING_TRIES = 20
INK_THRESHOLD = 96  # of 255: as much ink as this is a mask pixel; more breaks thin strokes

KIND = 'digits'
DATA_VERSION = 1  # to raise when the same arguments give other data


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Give the scans that come with scikit-learn.

    Returns:
        The scans, uint8 grey levels 0 (paper) to 16 (ink), (1797, 8, 8), and the digits they
        show, int64, (1797,).

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != 'sklearn':
            raise
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed: '
            'run `pip install scikit-learn`',
            name='sklearn',
        ) from None
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)


def split_scans(scans: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Split scans by content, a fifth of each digit to val; always the same way.

    Args:
        scans: (N, 8, 8) grey levels.
        labels: (N,) digits.

    Returns:
        ``{'train': indices, 'val': indices}``, each sorted. Identical scans are on one side.
    """
    _, content = np.unique(scans.reshape(len(scans), -1), axis=0, return_inverse=True)
    content = content.reshape(-1)  # numpy 2.0 keeps a second axis here
    rng = np.random.default_rng(0)
    in_val = np.zeros(len(scans), dtype=bool)
    for digit in np.unique(labels):
        kinds = rng.permutation(np.unique(content[labels == digit]))
        in_val |= np.isin(content, kinds[: round(len(kinds) * VAL_FRACTION)])
    return {'train': np.flatnonzero(~in_val), 'val': np.flatnonzero(in_val)}


def scatter(
    split: str, count: int, size: int = DEFAULT_CANVAS_SIZE, seed: int = 0
) -> Iterator[Canvas]:
    """Scatter the scans of one split over canvases, bright ink on a dark structured ground.

    A canvas is dealt 2 to 5 scans, each a sixth to a third of it wide; one that finds no room is
    left out. Canvas ``i`` does not depend on ``count``, and no scan comes twice before the deck of
    the split is through.

    Args:
        split: ``'train'`` or ``'val'``.
        count: Number of canvases.
        size: Width and height of a canvas in pixels, at least 48.
        seed: Seed of everything random, at least 0.

    Yields:
        ``count`` canvases.

    Raises:
        UserError: An argument is out of range.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    check_split(split)
    check_arguments((count, count), size, seed)
    scans, labels = load_scans()
    indices = split_scans(scans, labels)[split]

    def draw(hand: np.ndarray, rng: np.random.Generator) -> Canvas:
        return _draw_canvas(scans, labels, hand, size, rng)

    return deal(indices, split, count, seed, DIGITS_PER_CANVAS, draw)


def write_digits(
    out: str | os.PathLike,
    formats: Sequence[str] = FORMATS,
    canvases: Sequence[int] = DEFAULT_CANVASES,
    size: int = DEFAULT_CANVAS_SIZE,
    seed: int = 0,
    force: bool = False,
    image_size: int = DEFAULT_IMAGE_SIZE,
) -> dict[str, bool]:
    """Write several sets at once; if one of them is refused, none is written.

    ``OUT/imagenet/{train,val}/<0_zero ... 9_nine>/*.png`` gets each scan as an RGB picture, for
    mmpretrain's ``dict(type='ImageNet', data_root='OUT/imagenet', split='train',
    metainfo=dict(classes=DIGITS_CLASSES))``.

    ``OUT/coco/{train2017,val2017}/*.png`` and ``OUT/coco/annotations`` get the canvases of
    :func:`scatter`. Boxes are the tight extents of the masks, masks are exact uncompressed RLE (so
    mmdet's ``LoadAnnotations`` needs its default ``poly2mask=True``), category ids are 1 to 10, and
    each annotation names its ``scan``. mmdet reads it with ``dict(type='CocoDataset',
    data_root='OUT/coco', ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'), metainfo=dict(classes=DIGITS_CLASSES,
    palette=DIGITS_PALETTE))``.

    ``OUT/cityscapes/{leftImg8bit,gtFine}`` gets the same canvases. Train ids 0 to 9 are the digits,
    10 is the background. mmseg's ``CityscapesDataset`` reads it as it stands, with 19 classes under
    the Cityscapes names; it refuses other class names, so for the 11 classes under their own names
    say ``dict(type='BaseSegDataset', data_root='OUT/cityscapes',
    data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
    img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png',
    metainfo=dict(classes=SEG_CLASSES, palette=SEG_PALETTE))``.

    Args:
        out: Folder that gets one folder a format.
        formats: Any of ``'imagenet'``, ``'coco'`` and ``'cityscapes'``.
        canvases: Numbers of COCO and Cityscapes pictures for train and val.
        size: Width and height of those pictures in pixels, at least 48.
        seed: Seed of the scattering, at least 0; the split of the scans does not depend on it.
        force: Write again what an earlier run made with other arguments.
        image_size: Width and height of an ImageNet picture in pixels, at least 8.

    Returns:
        For each format, True if it was written and False if it was there already, made with the
        same arguments.

    Raises:
        UserError: An argument is out of range, or something else is there (only what this module
            wrote is ever replaced), or the folder cannot be written.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if image_size < 8:
        raise UserError(f'image size is {image_size}: want at least 8 pixels, the width of a scan')
    plan = dict.fromkeys(formats, check_arguments(canvases, size, seed))
    if 'imagenet' in plan:
        plan['imagenet'] = {'size': image_size}
    return write_sets(out, plan, _BUILDERS, KIND, DATA_VERSION, force)


# Drawing. Pillow resizes 8-bit pictures in integers, so the pixels are alike on every machine.


def _enlarge(scan: np.ndarray, size: int) -> np.ndarray:
    """Scan (8, 8) in grey levels 0 to 16 to ink (size, size) in uint8 0 to 255, smoothly."""
    ink = (scan.astype(np.int64) * 255 // MAX_LEVEL).astype(np.uint8)
    return np.asarray(Image.fromarray(ink).resize((size, size), Image.Resampling.BICUBIC))


def _draw_ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """Dark ground (size, size, 3) in uint8: colour clouds, a few faint strokes, grain."""
    clouds = Image.fromarray(rng.integers(0, 90, (6, 6, 3), dtype=np.uint8))
    clouds = clouds.resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(clouds)
    for _ in range(rng.integers(2, 5)):
        ends = rng.integers(0, size, 4).tolist()
        colour = tuple(rng.integers(40, 120, 3).tolist())
        pen.line(ends, fill=colour, width=int(rng.integers(1, 4)))
    grain = rng.integers(-6, 7, (size, size, 3))
    return np.clip(np.asarray(clouds) + grain, 0, 255).astype(np.uint8)


def _draw_canvas(
    scans: np.ndarray, labels: np.ndarray, hand: np.ndarray, size: int, rng: np.random.Generator
) -> Canvas:
    """Draw the scans of ``hand`` where there is room; one that finds none is left out."""
    image = _draw_ground(size, rng).astype(np.int64)
    taken = np.zeros((size, size), dtype=bool)
    masks, placed = [], []
    for scan in hand.tolist():
        side = int(rng.integers(size // 6, size // 3 + 1))
        ink = _enlarge(scans[scan], side)
        colour = rng.integers(150, 256, 3)
        for _ in range(PLACING_TRIES):
            top, left = rng.integers(0, size - side + 1, 2).tolist()
            spot = np.s_[top : top + side, left : left + side]
            if not taken[spot].any():
                break
        else:
            continue
        alpha = ink[..., None].astype(np.int64)
        image[spot] = (image[spot] * (255 - alpha) + colour * alpha) // 255
        mask = np.zeros((size, size), dtype=bool)
        mask[spot] = ink >= INK_THRESHOLD
        x, y, width, height = box(mask)
        taken[y : y + height, x : x + width] = True
        masks.append(mask)
        placed.append(scan)
    return Canvas(
        image=image.astype(np.uint8),
        masks=np.stack(masks),
        labels=tuple(labels[placed].tolist()),
        scans=tuple(placed),
    )


# Building a set in a new folder


def _build_imagenet(root: Path, size: int) -> None:
    scans, labels = load_scans()
    for split, indices in split_scans(scans, labels).items():
        for folder in DIGITS_FOLDERS:
            (root / split / folder).mkdir(parents=True)
        for index in indices.tolist():
            grey = _enlarge(scans[index], size)
            path = root / split / DIGITS_FOLDERS[labels[index]] / f'scan_{index:04d}.png'
            save(np.stack([grey] * 3, axis=-1), path)


_BUILDERS = {
    'imagenet': _build_imagenet,
    **builders(
        scatter,
        DIGITS_CLASSES,
        supercategory='digit',
        kind=KIND,
        info={'description': 'digits of scikit-learn, scattered', 'version': DATA_VERSION},
    ),
}
