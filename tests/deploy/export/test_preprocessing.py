"""What is said of preprocessing is what the libraries' own data preprocessors do."""

import json

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor
from mmseg.models import SegDataPreProcessor
from torch import nn

from mmorepa.deploy.export.preprocessing import Preprocessed, Preprocessing

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
#: Of float32 arithmetic on values up to 255 / 58.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)
#: What undoing loses of pixels up to 255.
PIXELS = dict(rtol=0, atol=1e-3)

CASES = {
    'mmpretrain': (ClsDataPreprocessor(MEAN, STD, to_rgb=True), True, 1),
    'mmpretrain BGR': (ClsDataPreprocessor(MEAN, STD), False, 1),
    'mmpretrain bare': (ClsDataPreprocessor(), False, 1),
    'mmdet': (DetDataPreprocessor(MEAN, STD, bgr_to_rgb=True, pad_size_divisor=32), True, 32),
    'mmseg': (SegDataPreProcessor(MEAN, STD, size=(32, 32), bgr_to_rgb=True), True, 1),
}


@pytest.mark.parametrize('name', CASES)
def test_the_same_network_input(name):
    preprocessor, swaps, divisor = CASES[name]
    model = nn.Module()
    model.data_preprocessor = preprocessor
    found = Preprocessing.of(model)
    assert (found.swaps_channels, found.pad_size_divisor) == (swaps, divisor)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    expected = preprocessor(dict(inputs=list(pixels)), False)['inputs']
    network = Preprocessed(nn.Identity(), found)
    torch.testing.assert_close(network(pixels.float()), expected, **TOLERANCE)
    torch.testing.assert_close(found.undo(expected), pixels.float(), **PIXELS)


@pytest.mark.parametrize(
    'inside, metadata, text',
    [
        (
            False,
            dict(channel_order='RGB', mean=MEAN, std=STD, pad_size_divisor=32),
            'RGB, (pixel - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)',
        ),
        (True, dict(channel_order='BGR', pad_size_divisor=32), 'BGR, pixels from 0 to 255'),
    ],
    ids=['outside', 'inside'],
)
def test_what_is_said(inside, metadata, text):
    model = nn.Module()
    model.data_preprocessor = CASES['mmdet'][0]
    found = Preprocessing.of(model)
    assert {k: json.loads(v) for k, v in found.metadata(inside).items()} == metadata
    assert found.describe(inside) == text


@pytest.mark.parametrize('test_cfg, divisor', [(dict(size_divisor=32), 32), (dict(size=(8, 8)), 1)])
def test_what_mmseg_pads_to(test_cfg, divisor):
    model = nn.Module()
    model.data_preprocessor = SegDataPreProcessor(MEAN, STD, test_cfg=test_cfg)
    assert Preprocessing.of(model).pad_size_divisor == divisor


def test_pixels_are_padded_with_the_mean():
    """The models' own padding comes behind their normalisation."""
    model = nn.Module()
    model.data_preprocessor = CASES['mmdet'][0]
    pixels = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8)
    expected = model.data_preprocessor(dict(inputs=[pixels]), False)['inputs']
    padded = torch.tensor(MEAN[::-1]).view(1, 3, 1, 1).repeat(1, 1, 32, 32)
    padded[..., :20, :] = pixels
    found = Preprocessed(nn.Identity(), Preprocessing.of(model))(padded)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_model_without_any():
    assert Preprocessing.of(nn.Conv2d(3, 4, 1)) == Preprocessing()


def test_in_float16_the_input_stays_float32():
    network = Preprocessed(nn.Conv2d(3, 4, 1), Preprocessing((100.0,) * 3, (50.0,) * 3)).half()
    assert network(torch.zeros(1, 3, 4, 4)).dtype == torch.float16
    assert network.mean.dtype == torch.float32
