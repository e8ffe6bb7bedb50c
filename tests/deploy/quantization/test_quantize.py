"""From a config and a checkpoint to an int8 file, as a user types it."""

import json
import re

import pytest
import torch
from mmengine.config import Config

import mmorepa.det
import mmorepa.seg  # noqa: F401
from downstream import SIZE, narrow, on_digits
from mmorepa.checkpoints.models import build_model
from mmorepa.datasets.digits import write_digits
from mmorepa.deploy.quantization import Settings, open_int8, quantize
from mmorepa.errors import UserError
from support import ROOT

MOST_LOST = 3.0  # points, of a network of 8 channels; one image is .28
RETINANET = 'coco/retinanet_orepa-r18_fpn_1x_coco'
FASTER_RCNN = 'coco/faster-rcnn_orepa-r50_fpn_1x_coco'
PSPNET = 'cityscapes/pspnet_orepa-r18-d8_4xb2-80k_cityscapes-512x1024'
DOWNSTREAM = [
    (RETINANET, 'coco/bbox_mAP', 'onnxruntime'),
    (RETINANET, 'coco/bbox_mAP', 'torch'),
    (FASTER_RCNN, 'coco/bbox_mAP', 'onnxruntime'),
    (PSPNET, 'mIoU', 'onnxruntime'),
    (PSPNET, 'mIoU', 'torch'),
]
LEARNED = 50.0  # top-1 in per cent; chance is 10


@pytest.mark.parametrize(
    'name, settings',
    [
        ('static.onnx', Settings()),
        ('dynamic.onnx', Settings(mode='dynamic')),
        ('static.pt', Settings('torch')),
    ],
    ids=['static', 'dynamic', 'torch'],
)
def test_int8_loses_little_on_the_digits(config, checkpoint, tmp_path, name, settings):
    done = quantize(config(), checkpoint, tmp_path / name, settings, 64, evaluate=True)
    before, after = (metrics['accuracy/top1'] for metrics in done.metrics)
    assert before > LEARNED
    assert abs(before - after) <= MOST_LOST
    assert done.bytes[1] == (tmp_path / name).stat().st_size
    content = json.loads((tmp_path / f'{name}.json').read_text())
    assert content['metrics'][1]['accuracy/top1'] == after
    assert content['calibration'] == (64 if settings.mode == 'static' else 0)
    assert content['settings']['backend'] == settings.backend
    assert content['settings']['per_channel_convolutions'] == (settings.mode == 'static')


def test_dynamic_reads_no_data(config, checkpoint, tmp_path):
    cfg = config(**{'test_dataloader.dataset.data_root': 'nowhere'})
    cfg.train_dataloader = None
    done = quantize(cfg, checkpoint, tmp_path / 'int8.onnx', Settings(mode='dynamic'), 1)
    assert done.calibration == 0
    with torch.no_grad():
        image = torch.rand(2, 3, 32, 32)
        (found,) = open_int8(done.out)(image)
    assert found.shape == (2, 10)


@pytest.fixture(scope='module')
def downstream_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('downstream')
    write_digits(folder, ['coco', 'cityscapes'], canvases=(4, 2), size=SIZE)
    return folder


@pytest.mark.parametrize('path, metric, backend', DOWNSTREAM)
def test_detectors_and_segmentors(downstream_folder, tmp_path, path, metric, backend):
    cfg = Config.fromfile(ROOT / 'configs' / f'{path}.py')
    cfg.merge_from_dict({**narrow(cfg), **on_digits(cfg, downstream_folder)})
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'random.pth')
    out = tmp_path / ('int8.onnx' if backend == 'onnxruntime' else 'int8.pt')
    settings = Settings(backend, method='minmax')
    done = quantize(cfg, tmp_path / 'random.pth', out, settings, 2, evaluate=True)
    assert metric in done.metrics[0]
    assert done.metrics[0].keys() == done.metrics[1].keys()
    assert done.bytes[1] > 0


@pytest.fixture(scope='module')
def dumped(config, tmp_path_factory):
    """The config as a file, for the command."""
    path = tmp_path_factory.mktemp('config') / 'narrow.py'
    config().dump(path)
    return path


def test_command(dumped, checkpoint, run_forked, tmp_path):
    tool = (ROOT / 'tools' / 'quantize.py', dumped, checkpoint)
    text = run_forked(tmp_path, *tool, 'int8.onnx', '--calibration', 32, '--report', 'report')
    assert 'ranges of activations: found on 32 images, minmax' in text
    assert re.search(r'weights in float: \d\.\d MiB, file in int8: \d\.\d MiB', text)
    assert 'wrote int8.onnx and int8.onnx.json' in text
    assert '│ layer4.1.conv2 ' in text
    assert re.search(r'all layers +│[ │]+\d\d\.\d', text)
    assert 'wrote report/layers.json, report/layers.png, report/ranges.png' in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['int8.onnx', 'int8.onnx.json', 'report']


def test_nothing_is_written_where_something_is_missing(config, checkpoint, tmp_path):
    (tmp_path / 'here.onnx').touch()
    with pytest.raises(UserError, match='here.onnx exists already'):
        quantize(config(), checkpoint, tmp_path / 'here.onnx')
    (tmp_path / 'here.onnx').unlink()
    cfg = config()
    cfg.train_dataloader = None
    with pytest.raises(UserError, match='has no train_dataloader'):
        quantize(cfg, checkpoint, tmp_path / 'int8.onnx')
    cfg = config()
    cfg.test_evaluator = None
    with pytest.raises(UserError, match='no test_evaluator'):
        quantize(cfg, checkpoint, tmp_path / 'int8.onnx', evaluate=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'backend, name, message',
    [
        ('onnxruntime', 'model.pt', 'wanted the ending .onnx'),
        ('torch', 'model.onnx', 'wanted the ending .pt'),
        ('torch', 'here.pt', 'here.pt exists already'),
        ('torch', 'record.pt', r'record\.pt\.json exists already'),
    ],
)
def test_names_of_files(config, tmp_path, backend, name, message):
    (tmp_path / 'here.pt').touch()
    (tmp_path / 'record.pt.json').touch()
    with pytest.raises(UserError, match=message):
        quantize(config(), tmp_path / 'a.pth', tmp_path / name, Settings(backend))
    # The next thing that is wrong.
    for free, force in (('here.pt', True), ('elsewhere.pt', False)):
        with pytest.raises(UserError, match='no checkpoint at'):
            quantize(config(), tmp_path / 'a.pth', tmp_path / free, Settings('torch'), force=force)
    with pytest.raises(UserError, match='here.pt is what is to be quantized'):
        quantize(
            config(), tmp_path / 'here.pt', tmp_path / 'here.pt', Settings('torch'), force=True
        )
