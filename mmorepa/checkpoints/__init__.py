"""Checkpoints: reading them safely, telling their form, converting them."""

from .conversion import Conversion, convert
from .files import load_checkpoint, save_checkpoint
from .forms import load_any_form

__all__ = ['Conversion', 'convert', 'load_any_form', 'load_checkpoint', 'save_checkpoint']
