"""The exported graph of an OREPA network has the very nodes of the plain network's."""

import onnx
import pytest
import torch
from mmpretrain.models import RepVGG
from onnx import numpy_helper

from mmorepa import squeeze, switch_to_deploy
from mmorepa.backbones.pretrain_repvgg import OREPARepVGG
from mmorepa.deploy.export import FormatOptions, TensorModel, write_onnx
from support import make_trained_like

SAMPLE = torch.zeros(2, 3, 64, 64)


def structure(model, path):
    """Every node: operator, attributes, and where its inputs come from; initializers by shape."""
    write_onnx(model, path, SAMPLE, FormatOptions())
    graph = onnx.load(path).graph
    initializers = {tensor.name: (tensor.data_type, *tensor.dims) for tensor in graph.initializer}
    numbers = {graph.input[0].name: 0}

    def attribute(item):
        value = onnx.helper.get_attribute_value(item)
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value).tolist()
        return item.name, value

    nodes = []
    for node in graph.node:
        inputs = [initializers.get(name, numbers.get(name)) for name in node.input]
        numbers |= {name: len(numbers) + i for i, name in enumerate(node.output)}
        nodes.append((node.op_type, inputs, sorted(attribute(item) for item in node.attribute)))
    return nodes, [(numbers[output.name], output.name) for output in graph.output]


@pytest.mark.parametrize(
    'kind', ['classifier', 'deep classifier', 'detector', 'two-stage detector', 'segmentor']
)
def test_of_resnets(kind, small_model, tmp_path):
    model = small_model(kind, seed=0)
    found = structure(TensorModel(switch_to_deploy(model)), tmp_path / 'ours.onnx')
    # The library's own network, whose BatchNorms torch's exporter folds.
    stock = small_model(kind, seed=1, plain=True)
    assert type(stock.backbone).__module__.partition('.')[0] in ('mmpretrain', 'mmdet', 'mmseg')
    assert structure(TensorModel(stock), tmp_path / 'plain.onnx') == found
    operators = [operator for operator, _, _ in found[0]]
    assert operators.count('Conv') >= 20
    assert 'BatchNormalization' not in operators


def test_of_the_plain_form(small_model, tmp_path):
    model = small_model('classifier')
    deployed = structure(
        TensorModel(switch_to_deploy(model, inplace=False)), tmp_path / 'deploy.onnx'
    )
    assert structure(TensorModel(squeeze(model)), tmp_path / 'plain.onnx') == deployed


@pytest.mark.parametrize('groups', [1, 2])
def test_of_repvgg(groups, tmp_path):
    """mmpretrain's own RepVGG, in its own deploy form."""
    arch = dict(
        num_blocks=(2, 2, 2, 1),
        width_factor=(1, 1, 1, 1),
        group_layer_map={2: groups, 4: groups} if groups > 1 else None,
        se_cfg=None,
    )
    ours = make_trained_like(OREPARepVGG(arch, base_channels=8)).switch_to_deploy()
    stock = RepVGG(dict(arch, stem_channels=8), base_channels=8, deploy=True)
    found = structure(TensorModel(ours), tmp_path / 'ours.onnx')
    assert structure(TensorModel(stock), tmp_path / 'plain.onnx') == found
    assert [operator for operator, _, _ in found[0]] == ['Conv', 'Relu'] * 8


def test_the_comparison_sees_a_difference(tmp_path):
    """In stride alone, between two networks of the same operators and shapes of weights."""
    arch = dict(
        num_blocks=(1, 1, 1, 1), width_factor=(1, 1, 1, 1), group_layer_map=None, se_cfg=None
    )
    first, second = (
        structure(
            TensorModel(RepVGG(arch, base_channels=8, strides=strides, deploy=True)),
            tmp_path / 'a.onnx',
        )
        for strides in ((2, 2, 2, 2), (2, 2, 2, 1))
    )
    assert first != second
    assert [node[0] for node in first[0]] == [node[0] for node in second[0]]
