"""Conversion: what is written, what is refused, and that nothing is half done."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmpretrain.models import ResNet

from mmorepa import OREPAConv2d, verify
from mmorepa.checkpoints import conversion, load_any_form
from mmorepa.checkpoints.comparing import compare_forms, probe_image
from mmorepa.checkpoints.conversion import convert
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import Agreement
from mmorepa.errors import UserError
from support import end_trace, make_trained_like

SIZE = 48
LOGITS = 1e-4


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(narrow_config, training_checkpoint):
    """The training form, loaded."""
    model = build_model(narrow_config())
    load_any_form(model, torch.load(training_checkpoint, weights_only=True)['state_dict'])
    return model


@pytest.mark.parametrize(
    'keep_bn, form, norms', [(False, 'deploy', 20), (True, 'plain', 0)], ids=['deploy', 'keep']
)
class TestWhatIsWritten:
    def test_checkpoint_and_report(
        self, keep_bn, form, norms, narrow_config, training_checkpoint, tmp_path
    ):
        out = tmp_path / 'out' / 'model.pth'
        done = convert(narrow_config(), training_checkpoint, out, keep_bn, probe_size=SIZE)
        assert (done.source_form, done.form) == ('training', form)
        assert (done.blocks, done.norms) == (17, norms)
        assert done.parameters[0] > 2 * done.parameters[1]
        assert done.bytes[0] > 2 * done.bytes[1]
        assert done.agreement.within(LOGITS)
        assert done.agreement.max_abs > 0
        assert files(out.parent) == ['model.pth', 'model.py']

        written = torch.load(out, weights_only=True)
        assert sorted(written) == ['meta', 'state_dict']
        assert written['meta']['epoch'] == 3
        assert written['meta']['dataset_meta'] == dict(classes=('0', '1'))
        assert written['meta']['mmorepa']['form'] == form
        assert sum(v.numel() for k, v in written['state_dict'].items()) < done.parameters[0]

    def test_config_beside_it_builds_what_loads_it(
        self, keep_bn, form, norms, narrow_config, training_checkpoint, tmp_path, source
    ):
        out = tmp_path / 'model.pth'
        done = convert(narrow_config(), training_checkpoint, out, keep_bn, probe_size=SIZE)
        model = build_model(Config.fromfile(done.config))
        assert type(model) is type(source)
        model.load_state_dict(torch.load(out, weights_only=True)['state_dict'], strict=True)
        assert not any(isinstance(module, OREPAConv2d) for module in model.modules())
        assert verify(source, model, probe_image(SIZE), mode='tensor').within(LOGITS)

    def test_a_second_conversion_changes_nothing(
        self, keep_bn, form, norms, narrow_config, training_checkpoint, tmp_path
    ):
        once, twice = tmp_path / 'once.pth', tmp_path / 'twice.pth'
        convert(narrow_config(), training_checkpoint, once, keep_bn, probe_size=SIZE)
        for cfg in (narrow_config(), Config.fromfile(once.with_suffix('.py'))):
            done = convert(cfg, once, twice, keep_bn, force=True, probe_size=SIZE)
            assert done.source_form == done.form == form
            assert done.blocks == 0
            first = torch.load(once, weights_only=True)['state_dict']
            second = torch.load(twice, weights_only=True)['state_dict']
            assert list(first) == list(second)
            assert all(torch.equal(first[key], second[key]) for key in first)


def test_keep_bn_loads_into_the_stock_classifier(
    narrow_config, training_checkpoint, tmp_path, source
):
    out = tmp_path / 'model.pth'
    convert(narrow_config(), training_checkpoint, out, keep_bn=True, probe_size=SIZE)
    state = torch.load(out, weights_only=True)['state_dict']
    stock = ResNet(18, base_channels=8, stem_channels=8)
    backbone = {
        key.removeprefix('backbone.'): value
        for key, value in state.items()
        if key.startswith('backbone.')
    }
    stock.load_state_dict(backbone, strict=True)
    stock_config = narrow_config(**{'model.backbone.type': 'ResNet'})
    del stock_config.model.backbone.reparam
    classifier = build_model(stock_config)
    classifier.load_state_dict(state, strict=True)
    assert type(classifier.backbone) is ResNet
    assert verify(source, classifier, probe_image(SIZE), mode='tensor').within(LOGITS)


def test_weights_are_those_that_the_ema_hook_puts_first(
    narrow_config, training_checkpoint, tmp_path, source
):
    """EMAHook evaluates the average, and saves it as the state dict, the last weights apart."""
    checkpoint = torch.load(training_checkpoint, weights_only=True)
    assert not convert(
        narrow_config(), training_checkpoint, tmp_path / 'a.pth', probe_size=SIZE
    ).ema
    hook = EMAHook(ema_type='ExponentialMovingAverage')
    hook.ema_model = ExponentialMovingAverage(source)
    runner = SimpleNamespace(model=source)
    hook.src_model = source
    average = {key: value + 0.125 for key, value in checkpoint['state_dict'].items()}
    hook.ema_model.module.load_state_dict(average)
    hook.enabled_by_epoch = hook.enabled = True
    hook.begin_iter, hook.begin_epoch = 0, 0
    runner.iter, runner.epoch = 1, 1
    hook.before_save_checkpoint(runner, checkpoint)
    torch.save(checkpoint, tmp_path / 'ema.pth')
    done = convert(
        narrow_config(), tmp_path / 'ema.pth', tmp_path / 'b.pth', keep_bn=True, probe_size=SIZE
    )
    assert done.ema
    bias = torch.load(tmp_path / 'b.pth', weights_only=True)['state_dict']['head.fc.bias']
    assert torch.equal(bias, average['head.fc.bias'])


def test_plain_form_can_be_folded_later(narrow_config, training_checkpoint, tmp_path):
    convert(narrow_config(), training_checkpoint, tmp_path / 'a.pth', True, probe_size=SIZE)
    done = convert(narrow_config(), tmp_path / 'a.pth', tmp_path / 'b.pth', probe_size=SIZE)
    assert (done.source_form, done.form, done.norms) == ('plain', 'deploy', 20)


@pytest.mark.parametrize('channels, mean', [(1, [127.5]), (4, [127.5] * 4)])
def test_images_of_other_channels(channels, mean, narrow_config, tmp_path):
    cfg = narrow_config(**{'model.backbone.in_channels': channels})
    cfg.data_preprocessor.update(mean=mean, std=mean, to_rgb=False)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'a.pth')
    done = convert(cfg, tmp_path / 'a.pth', tmp_path / 'b.pth', probe_size=SIZE)
    assert done.agreement.within(LOGITS)


def test_the_written_config_starts_from_nothing_else(narrow_config, training_checkpoint, tmp_path):
    cfg = narrow_config()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='before.pth')
    cfg.update(load_from='before.pth', resume=True)
    done = convert(cfg, training_checkpoint, tmp_path / 'a.pth', keep_bn=True, probe_size=SIZE)
    written = Config.fromfile(done.config)
    assert written.model.backbone.init_cfg is None
    assert (written.load_from, written.resume) == (None, False)
    # Training it leaves the first training's checkpoints alone.
    assert cfg.work_dir and 'work_dir' not in written
    assert cfg.model.backbone.init_cfg.checkpoint == 'before.pth'
    build_model(written).init_weights()


class TestWhatIsRefused:
    def refused(self, message, *args, **kwargs):
        with pytest.raises(UserError, match=message) as info:
            convert(*args, probe_size=SIZE, **kwargs)
        assert '\n' not in str(info.value)

    @pytest.mark.parametrize('name', ['model.pth', 'model.py'])
    def test_existing_files(self, name, narrow_config, training_checkpoint, tmp_path):
        (tmp_path / name).write_text('precious')
        before = files(tmp_path)
        out = tmp_path / 'model.pth'
        self.refused('exists already', narrow_config(), training_checkpoint, out)
        assert (tmp_path / name).read_text() == 'precious'
        assert files(tmp_path) == before
        convert(narrow_config(), training_checkpoint, out, force=True, probe_size=SIZE)
        assert torch.load(out, weights_only=True)['meta']['mmorepa']['form'] == 'deploy'

    @pytest.mark.parametrize('name', ['model.pth', 'model.py'])
    def test_a_file_that_comes_to_be_meanwhile(
        self, name, narrow_config, training_checkpoint, tmp_path, monkeypatch
    ):
        """As of another process that converts into the same name; one of both is lost otherwise."""

        def compare(*args):
            (tmp_path / name).write_text('of another process')
            return compare_forms(*args)

        monkeypatch.setattr('mmorepa.checkpoints.conversion.compare_forms', compare)
        out = tmp_path / 'model.pth'
        self.refused('another process has just', narrow_config(), training_checkpoint, out)
        assert (tmp_path / name).read_text() == 'of another process'
        assert not list(tmp_path.glob('.model*'))

    def test_name_of_a_config(self, narrow_config, training_checkpoint, tmp_path):
        for name in ('model.py', 'model.safetensors'):
            out = tmp_path / name
            self.refused('is no name for a checkpoint', narrow_config(), training_checkpoint, out)

    @pytest.mark.parametrize('name', ['epoch_3.pth', 'train.pth'])
    def test_its_own_inputs(self, name, narrow_config, training_checkpoint, tmp_path):
        narrow_config().dump(tmp_path / 'train.py')
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        cfg = Config.fromfile(tmp_path / 'train.py')
        self.refused('is what is to be converted', cfg, training_checkpoint, tmp_path / name)
        self.refused(
            'is what is to be converted', cfg, training_checkpoint, tmp_path / name, force=True
        )
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_base_of_the_config(self, narrow_config, training_checkpoint, tmp_path):
        narrow_config().dump(tmp_path / 'base.py')
        (tmp_path / 'train.py').write_text("_base_ = 'base.py'")
        before = (tmp_path / 'base.py').read_text()
        cfg, out = Config.fromfile(tmp_path / 'train.py'), tmp_path / 'base.pth'
        self.refused('is what is to be converted', cfg, training_checkpoint, out, force=True)
        assert (tmp_path / 'base.py').read_text() == before

    @pytest.mark.parametrize('keep_bn', [False, True])
    def test_fake_quantization(self, keep_bn, narrow_config, tmp_path):
        cfg = narrow_config()
        cfg.model.update(architecture=cfg.model.type, type='QATForm')
        message = 'QATForm.* is not converted: .* tools/quantize.py'
        self.refused(message, cfg, tmp_path / 'a.pth', tmp_path / 'b.pth', keep_bn=keep_bn)

    def test_folded_norms_cannot_be_kept(self, narrow_config, training_checkpoint, tmp_path):
        convert(narrow_config(), training_checkpoint, tmp_path / 'a.pth', probe_size=SIZE)
        self.refused(
            'BatchNorms are folded',
            narrow_config(),
            tmp_path / 'a.pth',
            tmp_path / 'b.pth',
            keep_bn=True,
        )
        assert 'b.pth' not in files(tmp_path)

    def test_another_architecture(self, narrow_config, training_checkpoint, tmp_path):
        before = files(tmp_path)
        cfg = narrow_config(**{'model.backbone.depth': 34})
        self.refused('keys missing, first', cfg, training_checkpoint, tmp_path / 'a.pth')
        assert files(tmp_path) == before

    @pytest.mark.parametrize('relative', [1.01e-4, float('nan')])
    def test_outputs_that_differ(
        self, relative, narrow_config, training_checkpoint, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(
            conversion, 'compare_forms', lambda *_, **__: Agreement(relative, relative, 1.0)
        )
        before = files(tmp_path)
        out = tmp_path / 'a.pth'
        self.refused('does not agree', narrow_config(), training_checkpoint, out)
        assert files(tmp_path) == before

    def test_an_interruption_leaves_nothing(
        self, narrow_config, training_checkpoint, tmp_path, monkeypatch
    ):
        def interrupt(*_):
            raise KeyboardInterrupt

        before = files(tmp_path)
        monkeypatch.setattr(torch, 'save', interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(narrow_config(), training_checkpoint, tmp_path / 'a.pth', probe_size=SIZE)
        assert files(tmp_path) == before

    def test_a_model_that_folds_wrongly(self, narrow_config, tmp_path):
        """A convolution and a BatchNorm that look like a pair, with a ReLU between them."""
        cfg = narrow_config()
        model = make_trained_like(build_model(cfg))
        checkpoint = tmp_path / 'a.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        cfg.model.backbone.type = 'ReluBeforeNorm'
        self.refused('does not agree', cfg, checkpoint, tmp_path / 'b.pth')
        assert files(tmp_path) == ['a.pth']


@pytest.fixture(autouse=True, scope='module')
def _relu_before_norm():
    from mmpretrain.registry import MODELS

    from mmorepa.pretrain import OREPAResNet

    @MODELS.register_module(name='ReluBeforeNorm')
    class ReluBeforeNorm(OREPAResNet):
        def forward(self, x):
            end_trace(x)
            x = self.maxpool(self.norm1(self.conv1(x).relu()))
            for name in self.res_layers:
                x = getattr(self, name)(x)
            return (x,)

    yield
    MODELS._module_dict.pop('ReluBeforeNorm')
