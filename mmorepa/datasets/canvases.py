"""Scans scattered over canvases, with boxes and masks, written as COCO and as Cityscapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

SPLITS = ('train', 'val')
MAX_SIZE = 4096  # pixels; a picture takes up to 50 MB in memory
MIN_SIZE = 48  # pixels
#: Ten colours for ten classes, and black for the background.
PALETTE = [
    [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48],
    [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 190],
    [0, 0, 0],
]  # fmt: skip


@dataclass(frozen=True)
class Canvas:
    """One picture of scattered scans.

    Attributes:
        image: RGB picture, uint8, (size, size, 3).
        masks: The pixels of each of the N scans that are seen, bool, (N, size, size); no two of
            them share a pixel, and none is empty.
        labels: The N classes.
        scans: The N indices of the scans.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: tuple[int, ...]
    scans: tuple[int, ...]


def check_arguments(canvases: Sequence[int], size: int, seed: int) -> dict:
    """The arguments of a set, as its stamp has them.

    Args:
        canvases: Numbers of pictures for train and val.
        size: Width and height of a picture in pixels, 48 to 4096.
        seed: Seed of everything random, at least 0.

    Raises:
        UserError: An argument is out of range.
    """
    if len(canvases) != len(SPLITS):
        raise UserError(f'canvases is {canvases}: want two numbers, train and val')
    if min(canvases) < 1:
        raise UserError(f'number of canvases is {min(canvases)}: want at least 1')
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f'canvas size is {size}: want {MIN_SIZE} to {MAX_SIZE} pixels')
    if seed < 0:
        raise UserError(f'seed is {seed}: want at least 0')
    return {'canvases': list(canvases), 'size': size, 'seed': seed}


def check_split(split: str) -> None:
    """Make sure that a split is ``'train'`` or ``'val'``, or raise a UserError."""
    if split not in SPLITS:
        raise UserError(f'split {split!r} is unknown: want one of {", ".join(SPLITS)}')


def deal(
    scans: np.ndarray,
    split: str,
    count: int,
    seed: int,
    hand: tuple[int, int],
    draw: Callable[[np.ndarray, np.random.Generator], Canvas],
) -> Iterator[Canvas]:
    """Deal the scans of one split to canvases.

    Canvas ``i`` does not depend on ``count``, and no scan comes twice before the deck of the split
    is through.

    Args:
        scans: Indices of the split's scans, (N,).
        split: ``'train'`` or ``'val'``.
        count: Number of canvases.
        seed: Seed of everything random.
        hand: Fewest and most scans that a canvas is dealt.
        draw: Makes a canvas of the scans that it is dealt, out of a random generator.

    Yields:
        ``count`` canvases.
    """
    stream = SPLITS.index(split)
    deck = np.random.default_rng([seed, stream, 0]).permutation(scans)
    fewest, most = hand
    for index in range(count):
        rng = np.random.default_rng([seed, stream, 1 + index])
        places = index * most + np.arange(rng.integers(fewest, most + 1))
        yield draw(deck[places % len(deck)], rng)


def box(mask: np.ndarray) -> list[int]:
    """Tight extent ``[x, y, width, height]`` in pixels of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def run_lengths(mask: np.ndarray) -> dict:
    """Uncompressed COCO run lengths of a mask (H, W): down the columns, a run of 0 first."""
    pixels = mask.ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [pixels.size]))).tolist()
    return {'size': list(mask.shape), 'counts': [0, *runs] if pixels[0] else runs}


def save(pixels: np.ndarray, path: Path) -> None:
    """Write a picture, uint8, (H, W) or (H, W, 3)."""
    Image.fromarray(pixels).save(path)


def build_coco(
    root: Path,
    canvases: Mapping[str, Iterable[Canvas]],
    classes: Sequence[str],
    supercategory: str,
    info: Mapping,
) -> None:
    """Fill a folder with ``{train2017,val2017}/*.png`` and ``annotations/``.

    Boxes are the tight extents of the masks, masks are exact uncompressed RLE, category ids begin
    at 1, and each annotation names its ``scan``.
    """
    (root / 'annotations').mkdir()
    categories = [
        {'id': label + 1, 'name': name, 'supercategory': supercategory}
        for label, name in enumerate(classes)
    ]
    for split, pictures in canvases.items():
        images, annotations = [], []
        (root / f'{split}2017').mkdir()
        for image_id, canvas in enumerate(pictures, start=1):
            file_name = f'{image_id:012d}.png'
            save(canvas.image, root / f'{split}2017' / file_name)
            height, width = canvas.image.shape[:2]
            images.append(
                {'id': image_id, 'file_name': file_name, 'height': height, 'width': width}
            )
            for mask, label, scan in zip(canvas.masks, canvas.labels, canvas.scans):
                annotations.append({
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': label + 1,
                    'bbox': box(mask),
                    'area': int(mask.sum()),
                    'segmentation': run_lengths(mask),
                    'iscrowd': 0,
                    'scan': scan,
                })  # fmt: skip
        content = {
            'info': dict(info),
            'images': images,
            'annotations': annotations,
            'categories': categories,
        }
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content, separators=(',', ':')), encoding='utf-8')


def build_cityscapes(
    root: Path, canvases: Mapping[str, Iterable[Canvas]], background: int, city: str
) -> None:
    """Fill a folder with ``{leftImg8bit,gtFine}/{train,val}/<city>/*.png``; a pixel is a class."""
    for split, pictures in canvases.items():
        folders = [root / kind / split / city for kind in ('leftImg8bit', 'gtFine')]
        for folder in folders:
            folder.mkdir(parents=True)
        for index, canvas in enumerate(pictures):
            train_ids = np.full(canvas.image.shape[:2], background, dtype=np.uint8)
            for mask, label in zip(canvas.masks, canvas.labels):
                train_ids[mask] = label
            stem = f'{city}_{index:06d}_000000'
            save(canvas.image, folders[0] / f'{stem}_leftImg8bit.png')
            save(train_ids, folders[1] / f'{stem}_gtFine_labelTrainIds.png')


def builders(
    scatter: Callable[..., Iterator[Canvas]],
    classes: Sequence[str],
    supercategory: str,
    kind: str,
    info: Mapping,
) -> dict[str, Callable[..., None]]:
    """What fills the folder of a COCO and of a Cityscapes set, out of a canvases' maker.

    Args:
        scatter: ``scatter(split, count, size, seed)`` gives canvases.
        classes: Names of the classes; the background of a Cityscapes set comes after them.
        supercategory: Of all categories of the COCO set.
        kind: What the canvases are of, one word; the city of the Cityscapes set.
        info: Of the COCO set.

    Returns:
        ``{'coco': build, 'cityscapes': build}``, for
        :func:`mmorepa.datasets.in_place.write_sets`: ``build(folder, canvases, size, seed)``.
    """

    def splits(canvases: Sequence[int], size: int, seed: int) -> dict[str, Iterator[Canvas]]:
        return {split: scatter(split, count, size, seed) for split, count in zip(SPLITS, canvases)}

    def coco(root: Path, **arguments) -> None:
        build_coco(root, splits(**arguments), classes, supercategory, info)

    def cityscapes(root: Path, **arguments) -> None:
        build_cityscapes(root, splits(**arguments), len(classes), kind)

    return {'coco': coco, 'cityscapes': cityscapes}
