"""The report: what is shown and written is what was measured."""

import dataclasses
import json
import math

import pytest
from rich.console import Console

from mmorepa.datasets.digits import write_digits
from mmorepa.deploy.quantization.layers import Layer, Measurement
from mmorepa.errors import UserError
from mmorepa.lab.analysis import quantization_report

PNG = b'\x89PNG\r\n\x1a\n'


def layer(name, accuracy, **fields):
    defaults = dict(
        shape=(4, 3, 3, 3), low=-1.5, high=2.0, peak=4.0, spread=1.5,
        channel_peaks=[1.0, 2.0, 1.5, 0.5], unfolded=None, weight_sqnr=40.0,
        tensor_weight_sqnr=33.0, input_range=(0.0, 1.0), input_sqnr=45.0, output_sqnr=39.0,
        network_sqnr=50.0, metrics={'accuracy/top1': accuracy},
    )  # fmt: skip
    return Layer(name=name, **{**defaults, **fields})


@pytest.fixture
def made():
    layers = [
        layer('conv1', 98.0, unfolded=dict(peak=3.0, spread=1.2)),
        layer('layer1.0.conv1', 99.0, network_sqnr=math.inf),
    ]
    found = Measurement(layers, True, {'accuracy/top1': 99.0}, {'accuracy/top1': 96.5}, 30.0)
    return quantization_report.QuantizationReport('config.py', 'epoch_1.pth', 64, 0, found)


def text_of(made):
    console = Console(width=200, record=True, file=open('/dev/null', 'w'))
    console.print(made.table())
    return console.export_text()


def test_table(made):
    lines = text_of(made).splitlines()
    row = next(line for line in lines if ' conv1 ' in line).replace('│', ' ').split()
    ranges = '-1.50 to 2.00 0.00 to 1.00'
    assert row == f'conv1 {ranges} 3.0 → 4.0 1.2 → 1.5 40.0 | 33.0 45.0 39.0 50.0 1.00'.split()
    assert next(line for line in lines if 'all layers' in line).split()[-2] == '2.50'
    assert any('lost: accuracy/top1' in line for line in lines)


def test_table_without_evaluation(made):
    found = dataclasses.replace(
        made.found,
        layers=[dataclasses.replace(layer, metrics={}) for layer in made.found.layers],
        float_metrics={},
        all_metrics={},
    )
    made = dataclasses.replace(made, found=found)
    text = text_of(made)
    assert 'not evaluated' in text
    assert made.metric is None


def test_files(made, tmp_path):
    made.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(quantization_report.FILES)
    for name in ('layers.png', 'ranges.png'):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    content = json.loads((tmp_path / 'layers.json').read_text())
    assert content['found']['layers'][1]['network_sqnr'] is None
    assert content['found']['layers'][0]['unfolded'] == dict(peak=3.0, spread=1.2)
    assert content['found']['all_metrics'] == made.found.all_metrics
    assert made.lost(made.found.all_metrics) == 2.5


def test_nothing_is_overwritten_unasked(made, tmp_path):
    quantization_report.check_folder(tmp_path)
    made.write(tmp_path)
    with pytest.raises(UserError, match='layers.json exists already'):
        quantization_report.check_folder(tmp_path)
    quantization_report.check_folder(tmp_path, force=True)


def test_study_of_a_checkpoint(narrow_config, training_checkpoint, tmp_path):
    write_digits(tmp_path, ['imagenet'], image_size=32)
    train = {'dataset.data_root': str(tmp_path / 'imagenet'), 'num_workers': 0}
    train['persistent_workers'] = False
    cfg = narrow_config(**{f'train_dataloader.{key}': value for key, value in train.items()})
    made = quantization_report.study(cfg, training_checkpoint, calibration=64, evaluate=False)
    assert len(made.found.layers) == 21
    assert made.calibration == 64
    assert all(layer.unfolded for layer in made.found.layers[:-1])
    assert made.found.layers[-1].name == 'head.fc'
    assert 20 < made.found.all_sqnr < min(layer.network_sqnr for layer in made.found.layers)
