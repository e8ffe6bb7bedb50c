"""From a checkpoint to a file: what is written, what is refused, and that nothing is half done."""

import json
import os
import runpy
import sys
from types import SimpleNamespace

import onnx
import pytest
import torch

from mmorepa import squeeze, switch_to_deploy
from mmorepa.checkpoints import convert
from mmorepa.checkpoints.models import build_model
from mmorepa.convs.convert.squeezing import TOLERANCE
from mmorepa.datasets.digits import write_digits
from mmorepa.deploy.export import export, exporting, float16
from mmorepa.deploy.export.formats import FORMATS
from mmorepa.errors import UserError
from support import ROOT, end_trace, make_trained_like, on_a_full_disk

SIZE = (32, 32)


@pytest.fixture
def checkpoint(small_config, tmp_path):
    """Gives a config and the checkpoint of a small model, in the form that a change gives it."""

    def write(kind='classifier', change=lambda model: model, tame=False):
        cfg = small_config(kind)
        torch.manual_seed(0)
        model = build_model(cfg)
        if not tame:
            make_trained_like(model)
        path = tmp_path / 'epoch_3.pth'
        meta = dict(dataset_meta=dict(classes=('zero', 'one')))
        torch.save(dict(meta=meta, state_dict=change(model).state_dict()), path)
        return cfg, path

    return write


@pytest.mark.parametrize(
    'form, change', [('training', lambda m: m), ('plain', squeeze), ('deploy', switch_to_deploy)]
)
def test_any_form_gives_the_same_graph(form, change, checkpoint, tmp_path):
    lines = []
    out = tmp_path / 'a.onnx'
    done = export(*checkpoint(change=change), out, size=SIZE, report=lines.append)
    assert done.source_form == form
    assert done.outputs == dict(logits=(2, 10))
    assert (done.nodes['Conv'], done.nodes['Relu'], done.nodes['Add']) == (20, 17, 8)
    assert done.agreement.within(TOLERANCE)
    assert done.images == 3
    found = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    assert found == done.metadata
    assert found['model'] == 'ImageClassifier'
    assert json.loads(found['classes']) == ['zero', 'one']
    assert json.loads(found['mean']) == [123.675, 116.28, 103.53]
    assert lines[0].endswith(f'is in {form} form')
    assert lines[-1].startswith(f'wrote {out}')
    assert any('opset 17' in line and '20 Conv, 17 Relu, 8 Add' in line for line in lines)


@pytest.mark.parametrize(
    'kind, options, name, shape',
    [
        ('classifier', dict(format='torchscript'), 'logits', (2, 10)),
        ('classifier', dict(format='torch-export', static=True), 'logits', (1, 10)),
        ('detector', dict(), 'bbox_pred_p3', (2, 36, 8, 8)),
        ('two-stage detector', dict(), 'feat_p2', (2, 8, 16, 16)),
        ('segmentor', dict(full_size=True, static=True), 'logits', (1, 19, 64, 64)),
    ],
)
def test_other_formats_and_models(kind, options, name, shape, checkpoint, tmp_path):
    format = FORMATS[options.get('format', 'onnx')]
    out = tmp_path / f'a{format.suffix()}'
    done = export(*checkpoint(kind), out, size=(64, 64), **options)
    assert done.outputs[name] == shape
    assert done.agreement.within(TOLERANCE)
    image = torch.zeros(shape[0], 3, 64, 64)
    assert [tuple(t.shape) for t in format.load(out)(image)] == list(done.outputs.values())


def test_pixels_in_logits_out(checkpoint, tmp_path):
    cfg, path = checkpoint()
    done = export(cfg, path, tmp_path / 'a.onnx', size=SIZE, with_preprocessing=True)
    assert json.loads(done.metadata['channel_order']) == 'BGR'
    assert 'mean' not in done.metadata
    model = build_model(cfg)
    model.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
    pixels = torch.randint(0, 256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(**model.data_preprocessor(dict(inputs=pixels)), mode='tensor')
    (found,) = FORMATS['onnx'].load(tmp_path / 'a.onnx')(pixels.float())
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_gray_images(small_config, tmp_path):
    cfg = small_config('classifier')
    cfg.model.backbone.in_channels = 1
    cfg.data_preprocessor.update(mean=[127.5], std=[127.5], to_rgb=False)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'a.pth')
    out = tmp_path / 'a.onnx'
    export(cfg, tmp_path / 'a.pth', out, size=SIZE, with_preprocessing=True)
    assert FORMATS['onnx'].load(out)(torch.zeros(2, 1, *SIZE))[0].shape == (2, 10)


@pytest.mark.parametrize(
    'format, with_preprocessing', [('onnx', False), ('onnx', True), ('torch-export', True)]
)
def test_float16(format, with_preprocessing, checkpoint, tmp_path):
    cfg, path = checkpoint(tame=True)
    out = tmp_path / f'a{FORMATS[format].suffix()}'
    lines = []
    done = export(
        cfg,
        path,
        out,
        format,
        size=(64, 64),
        fp16=True,
        with_preprocessing=with_preprocessing,
        report=lines.append,
    )
    assert 0 < done.agreement.relative <= float16.TOLERANCE
    assert done.agreement.relative > TOLERANCE / 100
    image = torch.zeros(2, 3, 64, 64, dtype=torch.float32 if with_preprocessing else torch.float16)
    assert FORMATS[format].load(out)(image)[0].dtype == torch.float16
    assert not any('float16 ends at' in line for line in lines)
    if format == 'onnx':
        graph = onnx.load(out).graph
        kinds = {t.data_type for t in graph.initializer}
        assert kinds <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


def test_float16_is_refused_where_it_does_not_fit(checkpoint, tmp_path):
    """A BatchNorm with a large gain, which is in the kernel once it is folded."""

    def enlarge(model):
        model.backbone.layer3[0].bn2.weight.data.fill_(1e6)
        return model

    cfg, path = checkpoint(change=enlarge, tame=True)
    lines = []
    message = (
        r'float16 cannot hold this model in \d+ places, the first is '
        r'backbone.layer3.0.conv2.*; nothing was written'
    )
    with pytest.raises(UserError, match=message):
        export(cfg, path, tmp_path / 'a.onnx', size=SIZE, fp16=True, report=lines.append)
    named = [line for line in lines if 'float16 ends at 65504' in line]
    assert any(line.startswith('backbone.layer3.0.conv2: its outputs reach') for line in named)
    assert not any(line.startswith(('backbone.layer1', 'backbone.layer2')) for line in named)
    assert os.listdir(tmp_path) == ['epoch_3.pth']


def test_images_of_the_test_set(checkpoint, tmp_path):
    write_digits(tmp_path / 'digits', ['imagenet'])
    cfg, path = checkpoint()
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'digits' / 'imagenet')
    done = export(cfg, path, tmp_path / 'a.onnx', size=SIZE, images=70)
    assert done.images == 3 + 70
    assert done.agreement.argmax == 1
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'missing')
    with pytest.raises(UserError, match='the test data of the config is not there'):
        export(cfg, path, tmp_path / 'b.onnx', size=SIZE, images=1)


def test_an_interruption_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    cfg, path = checkpoint()
    out = tmp_path / 'a.onnx'
    out.write_text('old')
    monkeypatch.setattr(onnx.checker, 'check_model', interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(cfg, path, out, size=SIZE, force=True)
    assert out.read_text() == 'old'
    assert sorted(os.listdir(tmp_path)) == ['a.onnx', path.name]


class TestRefusals:
    def refused(self, message, tmp_path, *args, **kwargs):
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(UserError, match=message) as error:
            export(*args, size=SIZE, **kwargs)
        assert '\n' not in str(error.value)
        assert sorted(os.listdir(tmp_path)) == before

    @pytest.mark.parametrize(
        'name, format, message',
        [
            ('a.pth', 'onnx', 'a.pth is no name for the format onnx: wanted the ending .onnx'),
            ('a.onnx', 'torch-export', 'a.onnx is no name for the format torch-export: .* .pt2'),
            ('a.onnx', 'tflite', "no format 'tflite': choose 'onnx', 'torch-export'"),
        ],
    )
    def test_names_and_formats(self, name, format, message, checkpoint, tmp_path):
        self.refused(message, tmp_path, *checkpoint(), tmp_path / name, format)

    @pytest.mark.parametrize(
        'format, options, message',
        [
            ('torchscript', dict(static=True), 'torchscript takes any size: leave static out'),
            ('torchscript', dict(opset=16), 'opset is of format onnx, this is torchscript'),
            ('torch-export', dict(opset=16), 'opset is of format onnx, this is torch-export'),
        ],
    )
    def test_options_of_other_formats(self, format, options, message, small_config, tmp_path):
        out = tmp_path / f'a{FORMATS[format].suffix()}'
        cfg = small_config('classifier')
        self.refused(message, tmp_path, cfg, tmp_path / 'a.pth', out, format, **options)

    def test_an_existing_file(self, checkpoint, tmp_path):
        cfg, path = checkpoint()
        out = tmp_path / 'a.onnx'
        out.write_text('old')
        self.refused('a.onnx exists already: .* --force', tmp_path, cfg, path, out)
        assert out.read_text() == 'old'
        assert export(cfg, path, out, size=SIZE, force=True).out == out
        onnx.checker.check_model(str(out))

    @pytest.mark.parametrize('format', [name for name in FORMATS if name != 'aot-inductor'])
    def test_a_full_disk(self, format, checkpoint, tmp_path):
        """AOTInductor's compiler meets it before the file is written."""
        cfg, path = checkpoint()
        out = tmp_path / f'a{FORMATS[format].suffix()}'
        said = on_a_full_disk(lambda: export(cfg, path, out, format, size=SIZE))
        assert f'{out} cannot be written: File too large' in said
        assert os.listdir(tmp_path) == [path.name]

    def test_the_checkpoint_itself(self, checkpoint, tmp_path):
        cfg, path = checkpoint()
        path = path.rename(tmp_path / 'epoch_3.pt')
        message = 'is what is to be exported: choose another name'
        self.refused(message, tmp_path, cfg, path, path, 'torchscript', force=True)

    def test_a_checkpoint_of_another_model(self, checkpoint, small_config, tmp_path):
        _, path = checkpoint('segmentor')
        message = 'does not fit the model of this config'
        self.refused(message, tmp_path, small_config('classifier'), path, tmp_path / 'a.onnx')

    def test_no_checkpoint(self, small_config, tmp_path):
        message = 'no checkpoint at .*: check the path'
        cfg = small_config('classifier')
        self.refused(message, tmp_path, cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx')

    def test_fake_quantization(self, small_config, tmp_path):
        cfg = small_config('classifier')
        cfg.model.update(architecture=cfg.model.type, type='QATForm')
        message = 'QATForm.* is not exported: .* tools/quantize.py'
        self.refused(message, tmp_path, cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx')

    def test_an_opset_that_there_is_not(self, checkpoint, tmp_path, capfd):
        message = 'torch.onnx cannot export this model: .*99'
        self.refused(message, tmp_path, *checkpoint(), tmp_path / 'a.onnx', opset=99)
        assert 'graph(' not in capfd.readouterr().out

    def test_full_size_of_a_classifier(self, checkpoint, tmp_path):
        message = 'full_size is of segmentors'
        self.refused(message, tmp_path, *checkpoint(), tmp_path / 'a.onnx', full_size=True)

    def test_test_images_of_another_size(self, checkpoint, tmp_path, monkeypatch):
        image = torch.zeros(1, 3, 48, 64)
        monkeypatch.setattr(exporting, 'test_images', lambda *_: [image])
        message = '48 x 64, static fixes 32 x 32: give that size with --size'
        cfg, path = checkpoint()
        self.refused(message, tmp_path, cfg, path, tmp_path / 'a.onnx', static=True, images=1)

    def test_a_model_that_does_not_run(self, checkpoint, tmp_path, monkeypatch):
        def forward(self, image):
            raise ValueError('too small')

        monkeypatch.setattr(exporting.TensorModel, 'forward', forward)
        message = r'does not run on an image of 32 x 32: too small$'
        self.refused(message, tmp_path, *checkpoint(), tmp_path / 'a.onnx')

    def test_a_size_that_torch_export_cannot_leave_open(self, checkpoint, tmp_path):
        """At 32 pixels the last feature map is one pixel, and one is not any number."""
        message = 'does not run on 1 x 3 x 64 x 96: .* Give another --size'
        out = tmp_path / 'a.pt2'
        self.refused(message, tmp_path, *checkpoint(), out, 'torch-export')

    @pytest.mark.parametrize('relative', [2e-4, float('nan')])
    def test_a_difference(self, relative, checkpoint, tmp_path, monkeypatch):
        """A file whose outputs are off by more than the tolerance is not kept."""
        load = FORMATS['onnx'].load

        def off(path):
            network = load(path)
            return lambda image: [output * (1 + relative) for output in network(image)]

        broken = SimpleNamespace(**{**vars(FORMATS['onnx']), 'load': off})
        monkeypatch.setitem(FORMATS, 'onnx', broken)
        message = 'does not agree with the checkpoint on 2 x 3 x 32 x 32: .* at most 1e-04 relative'
        self.refused(message, tmp_path, *checkpoint(), tmp_path / 'a.onnx')

    def test_a_model_that_folds_wrongly(self, checkpoint, tmp_path, monkeypatch):
        """A ReLU between a convolution and a BatchNorm that look like a pair."""
        from mmpretrain.models import ResNet

        def forward(self, x):
            end_trace(x)
            x = self.maxpool(self.norm1(self.conv1(x).relu()))
            for name in self.res_layers:
                x = getattr(self, name)(x)
            return (x,)

        monkeypatch.setattr(ResNet, 'forward', forward)
        message = 'does not agree with the checkpoint'
        self.refused(message, tmp_path, *checkpoint(), tmp_path / 'a.onnx')


def test_an_interruption_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def interrupt(path):
        assert path.stat().st_size > 0
        raise KeyboardInterrupt

    cfg, path = checkpoint()
    broken = SimpleNamespace(**{**vars(FORMATS['onnx']), 'load': interrupt})
    monkeypatch.setitem(FORMATS, 'onnx', broken)
    with pytest.raises(KeyboardInterrupt):
        export(cfg, path, tmp_path / 'a.onnx', size=SIZE)
    assert os.listdir(tmp_path) == ['epoch_3.pth']


def test_a_converted_checkpoint_with_the_config_beside_it(checkpoint, tmp_path):
    from mmorepa.engine.run import load_config

    cfg, path = checkpoint()
    convert(cfg, path, tmp_path / 'deploy.pth', probe_size=SIZE[0])
    cfg = load_config(tmp_path / 'deploy.py')
    done = export(cfg, tmp_path / 'deploy.pth', tmp_path / 'a.onnx', size=SIZE)
    assert done.metadata['model'] == 'ImageClassifier'
    assert done.source_form == 'deploy'


def run_tool(monkeypatch, *arguments):
    """Run the command in this process; gives its exit code."""
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools' / 'export.py'), run_name='__main__')
    return end.value.code


def test_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    cfg, path = checkpoint()
    cfg.dump(tmp_path / 'config.py')
    arguments = [tmp_path / 'config.py', path, tmp_path / 'a.onnx', '--size', 32, 48]
    assert run_tool(monkeypatch, *arguments, '--opset', 16, '--static') == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f'{path} is in training form'
    assert lines[1].startswith('classifier: RGB, (pixel - (123.675, 116.28, 103.53)) / (58.395')
    assert lines[2] == '  logits: 1 x 10 for 1 x 3 x 32 x 48'
    assert lines[3].startswith('graph (onnx, opset 16): ')
    assert lines[-1].startswith(f'wrote {tmp_path / "a.onnx"}')
    assert run_tool(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and 'exists already' in error and error.count('\n') == 1


@pytest.mark.parametrize('size', ['0', '-5', 'large'])
def test_a_wrong_size(size, tmp_path, monkeypatch, capsys):
    assert run_tool(monkeypatch, 'a.py', 'a.pth', 'a.onnx', '--size', size, 32) == 2
    assert 'argument --size' in capsys.readouterr().err
