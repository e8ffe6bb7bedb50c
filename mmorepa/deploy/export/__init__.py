"""Taking a trained model out, as ONNX and other files that are checked against PyTorch."""

from .exporting import Export, export
from .format_options import OPSET, FormatOptions
from .onnx_file import write_onnx
from .tensor_model import TensorModel

__all__ = ['OPSET', 'Export', 'FormatOptions', 'TensorModel', 'export', 'write_onnx']
