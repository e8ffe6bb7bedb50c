"""Int8: post-training quantization, quantization-aware training, and noise layer by layer."""

from .executor import open_int8, replaced_network
from .layers import measure
from .qat import build_qat_form
from .qat_hook import QATHook
from .quantize import Quantized, quantize
from .settings import Settings

__all__ = [
    'QATHook',
    'Quantized',
    'Settings',
    'build_qat_form',
    'measure',
    'open_int8',
    'quantize',
    'replaced_network',
]
