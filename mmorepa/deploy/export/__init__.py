"""Taking a trained model out, as ONNX and other files that are checked against PyTorch."""

from .exporting import Export, export
from .format_options import OPSET
from .onnx_file import node_counts, write_onnx
from .tensor_model import TensorModel

__all__ = ['OPSET', 'Export', 'TensorModel', 'export', 'node_counts', 'write_onnx']
