"""Checkpoints: reading them safely, telling their form, converting them."""

from .conversion import Conversion, convert
from .files import load_checkpoint, save_checkpoint
from .forms import load_any_form
from .models import Loaded, build_model, load_form, load_model
from .official.reading import OfficialCheckpoint, load_official, read_official, to_official

__all__ = [
    'Conversion',
    'Loaded',
    'OfficialCheckpoint',
    'build_model',
    'convert',
    'load_any_form',
    'load_checkpoint',
    'load_form',
    'load_model',
    'load_official',
    'read_official',
    'save_checkpoint',
    'to_official',
]
