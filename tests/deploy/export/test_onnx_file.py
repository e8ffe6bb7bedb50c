"""ONNX files: what is in them, and what becomes of a failure."""

import os
import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mmorepa import switch_to_deploy
from mmorepa.checkpoints.comparing import compare_outputs
from mmorepa.convs.convert.squeezing import TOLERANCE
from mmorepa.deploy.export import FormatOptions, TensorModel, write_onnx
from mmorepa.deploy.export.onnx_file import needed
from mmorepa.errors import UserError

SAMPLE = torch.zeros(2, 3, 64, 64)
#: Other batches, heights and widths, some of them odd.
OTHERS = [(2, 3, 64, 64), (1, 3, 80, 112), (3, 3, 97, 75)]


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(3))


def image(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def run(path, image):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(output) for output in session.run(None, {'image': image.numpy()})]


@pytest.mark.parametrize('kind', ['classifier', 'detector', 'two-stage detector', 'segmentor'])
def test_one_file_for_every_batch_and_size(kind, small_model, tmp_path):
    model = TensorModel(switch_to_deploy(small_model(kind)), full_size=kind == 'segmentor')
    write_onnx(model, tmp_path / 'a.onnx', SAMPLE, FormatOptions())
    for shape in OTHERS:
        with torch.no_grad():
            expected = model(image(shape))
        found = run(tmp_path / 'a.onnx', image(shape))
        assert compare_outputs(expected, found).within(TOLERANCE), shape


def test_names_axes_opset_and_metadata(small_model, tmp_path):
    model = TensorModel(switch_to_deploy(small_model('segmentor')))
    path = tmp_path / 'a.onnx'
    options = FormatOptions(opset=16, metadata=dict(mean='[1, 2]', model='PSPNet'))
    nodes = write_onnx(model, path, SAMPLE, options)
    graph = onnx.load(path)

    def axes(value):
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    (given,), (logits,) = graph.graph.input, graph.graph.output
    assert (given.name, axes(given)) == ('image', ['batch', 3, 'height', 'width'])
    expected = ['batch', 19, 'logits_height', 'logits_width']
    assert (logits.name, axes(logits)) == ('logits', expected)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [('', 16)]
    assert {prop.key: prop.value for prop in graph.metadata_props} == dict(
        mean='[1, 2]', model='PSPNet'
    )
    assert nodes['Conv'] == 26


def test_static(tmp_path):
    write_onnx(network(), tmp_path / 'a.onnx', SAMPLE, FormatOptions(dynamic=False))
    with pytest.raises(Exception, match='Got invalid dimensions for input: image'):
        run(tmp_path / 'a.onnx', image((1, 3, 64, 64)))
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
    assert [(o.name, o.shape) for o in session.get_outputs()] == [('output_0', [2, 4, 3, 3])]


def test_the_model_is_left_as_it_was(tmp_path):
    model = network().train()
    model[1].eval()
    pool = model[2]
    write_onnx(model, tmp_path / 'a.onnx', SAMPLE, FormatOptions())
    assert [module.training for module in model] == [True, False, True]
    assert model[2] is pool


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


def test_what_onnx_does_not_have(tmp_path):
    with pytest.raises(UserError, match='torch.onnx cannot export this model: .*svdvals') as error:
        write_onnx(Unknown(), tmp_path / 'a.onnx', SAMPLE, FormatOptions())
    assert '\n' not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='onnx is not installed: pip install onnx'):
        needed('onnx')
