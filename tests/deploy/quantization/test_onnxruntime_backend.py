"""Int8 ONNX files: real integer operators, near the float network."""

import sys
from collections import Counter

import onnx
import pytest
import torch

from mmorepa.checkpoints.models import build_model
from mmorepa.convs import switch_to_deploy
from mmorepa.deploy.export import TensorModel
from mmorepa.deploy.quantization import Settings, open_int8
from mmorepa.deploy.quantization.layers import Noise
from mmorepa.deploy.quantization.onnxruntime_backend import quantize_onnx
from support import make_trained_like

LEAST_SQNR = 15.0  # dB; a wrong scale or a lost bias leaves some 0 dB


@pytest.fixture
def model(config):
    model = make_trained_like(build_model(config()))
    return switch_to_deploy(model)


@pytest.fixture
def images():
    return [torch.randn(8, 3, 32, 32), torch.randn(3, 3, 40, 24)]


def sqnr(model, path, image):
    noise = Noise()
    with torch.no_grad():
        (expected,), (found,) = TensorModel(model)(image), open_int8(path)(image)
    noise.add(expected, found)
    return noise.sqnr


def node_counts(path):
    """The number of nodes by operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def weight_scales(path):
    """The number of scales that each int8 weight has."""
    graph = onnx.load(path).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return [
        tensors[node.input[1]].size
        for node in graph.node
        if node.op_type == 'DequantizeLinear'
        and node.input[0] in tensors
        and tensors[node.input[0]].dtype == 'int8'
    ]


@pytest.mark.parametrize(
    'per_channel, method',
    [(True, 'minmax'), (False, 'minmax'), (True, 'entropy'), (True, 'percentile')],
)
def test_static(model, images, tmp_path, per_channel, method):
    settings = Settings(per_channel=per_channel, method=method)
    quantize_onnx(model, tmp_path / 'int8.onnx', settings, images[0], images)
    counts = node_counts(tmp_path / 'int8.onnx')
    assert counts['Conv'] == 20
    assert counts['QuantizeLinear'] >= 20
    scales = weight_scales(tmp_path / 'int8.onnx')
    assert len(scales) == 21
    assert (max(scales) > 1) == per_channel
    for image in images:
        assert sqnr(model, tmp_path / 'int8.onnx', image) > LEAST_SQNR


@pytest.mark.parametrize('per_channel', [True, False])
def test_dynamic_gives_a_convolution_one_scale(model, images, tmp_path, per_channel):
    settings = Settings(mode='dynamic', per_channel=per_channel)
    quantize_onnx(model, tmp_path / 'int8.onnx', settings, images[0])
    tensors = onnx.load(tmp_path / 'int8.onnx').graph.initializer
    scales = [onnx.numpy_helper.to_array(t).size for t in tensors if t.name.endswith('_scale')]
    assert sorted(scales) == [1] * 20 + [10 if per_channel else 1]  # the last is the classifier's
    assert not settings.per_channel_convolutions


def test_dynamic_needs_no_images(model, images, tmp_path):
    quantize_onnx(model, tmp_path / 'int8.onnx', Settings(mode='dynamic'), images[0])
    counts = node_counts(tmp_path / 'int8.onnx')
    assert counts['ConvInteger'] == 20
    assert counts['Conv'] == 0
    assert sqnr(model, tmp_path / 'int8.onnx', images[1]) > LEAST_SQNR


def test_seven_bits(model, images, tmp_path):
    quantize_onnx(model, tmp_path / 'int8.onnx', Settings(reduce_range=True), images[0], images)
    graph = onnx.load(tmp_path / 'int8.onnx').graph
    weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer]
    assert max(abs(w.astype(int)).max() for w in weights if w.dtype == 'int8' and w.ndim > 1) <= 64


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_a_missing_package_gets_one_line(model, images, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'^{package} is not installed: pip install {package}$'):
        quantize_onnx(model, tmp_path / 'int8.onnx', Settings(), images[0], images)
    assert not list(tmp_path.iterdir())
