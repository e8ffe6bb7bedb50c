"""Files of each format are read back and run, without the model's code."""

import json
import zipfile

import pytest
import torch
from torch import nn

from mmorepa import switch_to_deploy
from mmorepa.checkpoints.comparing import compare_outputs
from mmorepa.convs.convert.squeezing import TOLERANCE
from mmorepa.deploy.export import TensorModel, torch_program
from mmorepa.deploy.export.format_options import FormatOptions
from mmorepa.deploy.export.formats import FORMATS
from mmorepa.errors import UserError

#: Larger than one pixel on every level of a detector.
SAMPLE = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
OTHERS = [(1, 3, 160, 224), (3, 3, 196, 172)]
METADATA = dict(channel_order='"RGB"', model='ResNet')


def images():
    generator = torch.Generator().manual_seed(1)
    return [SAMPLE] + [torch.randn(shape, generator=generator) for shape in OTHERS]


@pytest.mark.parametrize(
    'format, kind, convolution',
    [
        ('onnx', 'classifier', 'Conv'),
        ('torch-export', 'detector', 'conv2d'),
        ('torch-export', 'segmentor', 'conv2d'),
        ('torchscript', 'classifier', '_convolution'),
        ('torchscript', 'detector', '_convolution'),
        ('torchscript', 'segmentor', '_convolution'),
    ],
)
def test_every_batch_and_size(format, kind, convolution, small_model, tmp_path):
    model = TensorModel(switch_to_deploy(small_model(kind)))
    path = tmp_path / 'file'
    nodes = FORMATS[format].write(model, path, SAMPLE, FormatOptions(metadata=METADATA))
    # The head of a detector runs on each of its five levels.
    expected = dict(classifier=20, detector=20 + 8 + 5 * 4, segmentor=26)
    assert nodes[convolution] == expected[kind]
    network = FORMATS[format].load(path)
    for image in images():
        with torch.no_grad():
            expected = model(image)
        assert compare_outputs(expected, network(image)).within(TOLERANCE), image.shape


@pytest.mark.parametrize('format', ['torch-export', 'torchscript'])
def test_metadata(format, tmp_path):
    FORMATS[format].write(
        nn.Conv2d(3, 4, 1), tmp_path / 'file', SAMPLE, FormatOptions(metadata=METADATA)
    )
    extra = {'metadata.json': ''}
    if format == 'torchscript':
        torch.jit.load(tmp_path / 'file', _extra_files=extra)
    else:
        with open(tmp_path / 'file', 'rb') as file:
            torch.export.load(file, extra_files=extra)
    assert json.loads(extra['metadata.json']) == METADATA
    assert zipfile.is_zipfile(tmp_path / 'file')


def test_a_fixed_size(tmp_path):
    settings = FormatOptions(dynamic=False)
    FORMATS['torch-export'].write(nn.Conv2d(3, 4, 1), tmp_path / 'file', SAMPLE, settings)
    network = FORMATS['torch-export'].load(tmp_path / 'file')
    assert network(SAMPLE)[0].shape == (2, 4, 160, 160)
    with pytest.raises(Exception, match=r'shape|size\(\)\[0\] == 2'):
        network(SAMPLE[:1])


class Unexportable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    'format, model, message',
    [
        ('torch-export', Unexportable(), 'torch.export cannot export this model: .*torchscript'),
        ('torchscript', nn.Conv2d(5, 4, 1), 'torch.jit cannot trace this model: .*channels'),
    ],
)
def test_what_cannot_be_written(format, model, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        FORMATS[format].write(model, tmp_path / 'file', SAMPLE, FormatOptions())
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'file').exists()


def test_compiled_ahead_of_time(tmp_path, monkeypatch):
    # Without vector instructions, which take longest to compile.
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, 'simdlen', 0)
    monkeypatch.setattr(config.cpp, 'vec_isa_ok', False)
    monkeypatch.setattr(config, 'compile_threads', 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    nodes = FORMATS['aot-inductor'].write(model, tmp_path / 'file', SAMPLE, FormatOptions())
    assert nodes == dict(conv2d=1, relu=1)
    network = FORMATS['aot-inductor'].load(tmp_path / 'file')
    for image in images():
        with torch.no_grad():
            assert compare_outputs([model(image)], network(image)).within(TOLERANCE)
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_compiling_wants_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(UserError, match='needs a C.. compiler, found none: install g.. or set CXX'):
        FORMATS['aot-inductor'].write(
            nn.Conv2d(3, 4, 1), tmp_path / 'file', SAMPLE, FormatOptions()
        )
    assert torch_program.compiled_suffix() in ('.so', '.pt2')
