"""Taking a trained model out, as ONNX and other files that are checked against PyTorch."""

from .exporting import Export, export
from .format_options import OPSET
from .onnx_file import export_onnx, node_counts
from .tensor_model import TensorModel

__all__ = ['OPSET', 'Export', 'TensorModel', 'export', 'export_onnx', 'node_counts']
