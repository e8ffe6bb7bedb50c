"""Data to train on: real scans, of digits without a download, of clothes with one."""

from .canvases import Canvas
from .digits import (
    DIGITS_CLASSES,
    DIGITS_FOLDERS,
    DIGITS_PALETTE,
    FORMATS,
    SEG_CLASSES,
    SEG_PALETTE,
    load_scans,
    scatter,
    split_scans,
    write_digits,
)
from .fashion import FASHION_CLASSES, write_fashion

__all__ = [
    'DIGITS_CLASSES',
    'DIGITS_FOLDERS',
    'DIGITS_PALETTE',
    'FASHION_CLASSES',
    'FORMATS',
    'SEG_CLASSES',
    'SEG_PALETTE',
    'Canvas',
    'load_scans',
    'scatter',
    'split_scans',
    'write_digits',
    'write_fashion',
]
