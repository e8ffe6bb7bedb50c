"""Data to train on: real scans that need no download."""

from .digits import (
    DIGITS_CLASSES,
    DIGITS_FOLDERS,
    DIGITS_PALETTE,
    FORMATS,
    SEG_CLASSES,
    SEG_PALETTE,
    Canvas,
    load_scans,
    scatter,
    split_scans,
    write_cityscapes,
    write_coco,
    write_digits,
    write_imagenet,
)

__all__ = [
    'DIGITS_CLASSES',
    'DIGITS_FOLDERS',
    'DIGITS_PALETTE',
    'FORMATS',
    'SEG_CLASSES',
    'SEG_PALETTE',
    'Canvas',
    'load_scans',
    'scatter',
    'split_scans',
    'write_cityscapes',
    'write_coco',
    'write_digits',
    'write_imagenet',
]
