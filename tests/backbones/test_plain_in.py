"""Backbones that start from a plain network's checkpoint, under anybody's names."""

import contextlib
import copy
import http.server
import re
import threading
from functools import partial

import pytest
import timm
import torch
import torchvision
from mmengine.registry import MODELS
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmpretrain.models import RepVGG
from safetensors.torch import save_file

import mmorepa.det
import mmorepa.pretrain
import mmorepa.seg  # noqa: F401
from mmorepa import switch_to_deploy
from mmorepa.backbones.pretrained import load_pretrained
from mmorepa.checkpoints import schemes
from mmorepa.checkpoints.files import mmengine_loads_weights_only
from mmorepa.errors import UserError
from support import make_trained_like

FLOAT32 = 1e-5  # relative, of outputs
LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')
#: Enough channels for the stem to have any kernel.
NARROW = dict(base_channels=8, stem_channels=24)
#: timm's networks with a quarter of the channels behind the stem, and ours like them (of which
#: a group of ResNeXt has 1 where timm says 4: OpenMMLab's libraries count by ``base_channels``).
NARROW_TIMM = dict(channels=(16, 32, 64, 128))
LIKE_TIMM = dict(base_channels=16, stem_channels=64)


def build(kind='mmdet.OREPAResNet', checkpoint=None, **options):
    init_cfg = checkpoint and dict(type='Pretrained', checkpoint=str(checkpoint))
    return MODELS.build(dict(type=kind, init_cfg=init_cfg, **options))


def relative(a, b):
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b))


def outputs(model, size=64):
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    model.eval()  # the libraries' own do not return the model
    with torch.no_grad():
        return model(image)


def features(model, size=64):
    """The stages' outputs of torchvision's and timm's ResNets."""
    found = []
    for name in ('layer1', 'layer2', 'layer3', 'layer4'):
        getattr(model, name).register_forward_hook(lambda *args: found.append(args[2]))
    outputs(model, size)
    return found


@pytest.fixture(scope='module')
def resnet18():
    torch.manual_seed(0)
    return make_trained_like(torchvision.models.resnet18(num_classes=7))


@pytest.fixture(scope='module')
def narrow():
    """As ``resnet18``, with the same keys and an eighth of its channels."""
    torch.manual_seed(0)
    return make_trained_like(build('mmdet.ResNet', depth=18, **NARROW))


@pytest.mark.parametrize(
    'reparam', ['OREPA', dict(type='OREPA', mode='squeezed'), 'DBB', 'MobileOne']
)
def test_torchvisions(resnet18, reparam, tmp_path, caplog):
    path = tmp_path / 'resnet18.pth'
    torch.save(resnet18.state_dict(), path)
    backbone = build(checkpoint=path, depth=18, reparam=reparam)
    backbone.init_weights()
    assert relative(outputs(backbone), features(resnet18)) < FLOAT32


@pytest.mark.parametrize('library', LIBRARIES)
def test_what_was_done_is_said(narrow, library, tmp_path):
    path = tmp_path / 'resnet18.pth'
    head = {'fc.weight': torch.ones(2, 64), 'fc.bias': torch.ones(2)}
    torch.save(narrow.state_dict() | head, path)
    said = load_pretrained(build(f'{library}.OREPAResNet', depth=18, **NARROW), str(path))
    match = re.fullmatch(
        rf'loaded all 126 tensors of {re.escape(str(path))}, a plain network: 17 blocks imitate '
        r'its convolutions, outputs are (\S+) apart; left 2 of other parts, such as fc.weight',
        said,
    )
    assert match, said
    assert float(match[1]) < FLOAT32


def test_safetensors(narrow, tmp_path):
    path = tmp_path / 'resnet18.safetensors'
    save_file(narrow.state_dict(), path)
    backbone = build(checkpoint=path, depth=18, **NARROW)
    backbone.init_weights()
    assert relative(outputs(backbone), outputs(narrow)) < FLOAT32


@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnext50_32x4d'])
def test_timms(name, library, tmp_path):
    torch.manual_seed(0)
    model = make_trained_like(timm.create_model(name, num_classes=3, **NARROW_TIMM))
    path = tmp_path / 'timm.pth'
    torch.save(model.state_dict(), path)
    kind = 'OREPAResNeXt' if 'next' in name else 'OREPAResNet'
    options = (
        dict(groups=32, width_per_group=1)
        if library == 'mmpretrain'
        else dict(groups=32, base_width=1)
    )
    options = options if 'next' in name else {}
    options['depth'] = int(re.search(r'\d+', name)[0])
    backbone = build(f'{library}.{kind}', path, **options, **LIKE_TIMM)
    backbone.init_weights()
    expected = features(model)
    assert relative(outputs(backbone)[-1:], expected[-1:]) < 10 * FLOAT32


@pytest.mark.parametrize('library', LIBRARIES)
def test_timms_deep_stem(library, tmp_path):
    torch.manual_seed(0)
    model = make_trained_like(timm.create_model('resnet50d', num_classes=3, **NARROW_TIMM))
    path = tmp_path / 'timm.pth'
    torch.save(model.state_dict(), path)
    kind = 'mmpretrain.OREPAResNetV1d' if library == 'mmpretrain' else f'{library}.OREPAResNetV1d'
    backbone = build(kind, path, depth=50, **LIKE_TIMM)
    backbone.init_weights()
    assert relative(outputs(backbone)[-1:], features(model)[-1:]) < 10 * FLOAT32


@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('source', LIBRARIES)
def test_a_stock_network_with_a_head(source, library, tmp_path):
    """Its keys begin with ``backbone.``; the prefix is found out."""
    torch.manual_seed(0)
    stock = make_trained_like(build(f'{source}.ResNet', depth=18, **NARROW))
    state = {f'backbone.{key}': value for key, value in stock.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=state | {'head.fc.weight': torch.zeros(2, 2)}, meta={}), path)
    backbone = build(f'{library}.OREPAResNet', path, depth=18, **NARROW)
    backbone.init_weights()
    assert relative(outputs(backbone)[-1:], outputs(stock)[-1:]) < FLOAT32


@pytest.mark.parametrize('reparam', ['OREPA', 'RepVGG', dict(type='OREPA', mode='squeezed')])
@pytest.mark.parametrize('library', LIBRARIES)
def test_repvgg_of_three_branches(library, reparam, tmp_path):
    torch.manual_seed(0)
    arch = dict(num_blocks=[1, 2, 1, 1], width_factor=[0.25] * 4, stem_channels=16)
    arch |= dict(group_layer_map=None, se_cfg=None)
    plain = make_trained_like(RepVGG(arch))
    path = tmp_path / 'repvgg.pth'
    torch.save({f'backbone.{key}': value for key, value in plain.state_dict().items()}, path)
    backbone = build(f'{library}.OREPARepVGG', path, arch=arch, reparam=reparam)
    backbone.init_weights()
    assert relative(outputs(backbone)[-1:], outputs(plain)[-1:]) < FLOAT32


def test_a_repvgg_that_was_folded_is_refused(tmp_path):
    """The statistics that its BatchNorms train with are not in the file."""
    arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.25] * 4, stem_channels=16)
    arch |= dict(group_layer_map=None, se_cfg=None)
    folded = RepVGG(arch)
    folded.switch_to_deploy()
    path = tmp_path / 'repvgg.pth'
    torch.save(folded.state_dict(), path)
    with pytest.raises(UserError, match='as a deploy form whose BatchNorms are folded'):
        build('mmpretrain.OREPARepVGG', path, arch=arch).init_weights()


@pytest.mark.parametrize('reparam', ['OREPA', 'DBB', dict(type='OREPA', where='layer')])
def test_biases_in_front_of_norms(reparam, narrow, tmp_path):
    """Caffe's networks have them: detectron/resnet50_caffe, with which many detectors start."""
    found = copy.deepcopy(narrow.state_dict())
    for key, weight in narrow.state_dict().items():
        if weight.dim() == 4:
            bias = found[key.replace('.weight', '.bias')] = torch.randn(len(weight))
            norm = key.replace('conv', 'bn').replace('downsample.0', 'downsample.1')
            found[norm.replace('.weight', '.running_mean')] += bias
    path = tmp_path / 'caffe.pth'
    torch.save(found, path)
    backbone = build(checkpoint=path, depth=18, reparam=reparam, **NARROW)
    backbone.init_weights()
    assert relative(outputs(backbone), outputs(narrow)) < FLOAT32


@pytest.mark.parametrize('value, says', [(0.0, ''), (1.0, 'has a bias, conv1.bias, as a deploy')])
def test_a_bias_without_its_norm(value, says, narrow):
    """Zeros change nothing, and are what non-strict loading leaves out."""
    backbone = build(depth=18, **NARROW)
    found = {'conv1.weight': narrow.conv1.weight, 'conv1.bias': torch.full((24,), value)}
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        backbone.load_state_dict(found, strict=False)


def test_a_detector_gives_its_backbone(narrow, tmp_path):
    found = {f'backbone.{key}': value for key, value in narrow.state_dict().items()}
    found['neck.lateral_convs.0.conv.weight'] = torch.ones(1)
    path = tmp_path / 'detector.pth'
    torch.save(dict(state_dict=found), path)
    said = load_pretrained(build(depth=18, **NARROW), str(path))
    assert said.endswith('; left 1 of other parts, such as neck.lateral_convs.0.conv.weight')


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / 'served'
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'hub/checkpoints'


@pytest.mark.parametrize(
    'scheme, table',
    [
        ('torchvision', 'get_torchvision_models'),
        ('modelzoo', 'get_torchvision_models'),
        ('open-mmlab', 'get_external_models'),
        ('openmmlab', 'get_external_models'),
        ('mmcls', 'get_mmcls_models'),
    ],
)
def test_every_scheme(scheme, table, narrow, server, hub, monkeypatch):
    folder, address = server
    torch.save(narrow.state_dict(), folder / 'resnet18.pth')
    assert getattr(mmengine_checkpoint, table) is schemes.SCHEMES[scheme]
    monkeypatch.setitem(schemes.SCHEMES, scheme, lambda: {'resnet18': f'{address}/resnet18.pth'})
    backbone = build(checkpoint=f'{scheme}://resnet18', depth=18, **NARROW)
    backbone.init_weights()
    assert relative(outputs(backbone), outputs(narrow)) < FLOAT32
    assert (hub / 'resnet18.pth').is_file()
    with pytest.raises(UserError, match=f'{scheme} has no resnet81; it has resnet18'):
        build(checkpoint=f'{scheme}://resnet81', depth=18).init_weights()


def test_a_url_is_fetched_once(narrow, server, hub):
    folder, address = server
    torch.save(narrow.state_dict(), folder / 'a.pth')
    for _ in range(2):
        backbone = build(checkpoint=f'{address}/a.pth', depth=18, **NARROW)
        backbone.init_weights()
        (folder / 'a.pth').unlink(missing_ok=True)
    assert relative(outputs(backbone), outputs(narrow)) < FLOAT32


def error_of(checkpoint, **options):
    with pytest.raises(UserError) as info:
        build(checkpoint=checkpoint, **dict(dict(depth=18), **options)).init_weights()
    assert '\n' not in str(info.value)
    return str(info.value)


def test_downloads_that_fail(server, hub):
    folder, address = server
    assert 'cannot be read: HTTP Error 404' in error_of(f'{address}/missing.pth')
    (folder / 'page.pth').write_text('<!DOCTYPE html><html>gone</html>')
    assert 'is a web page' in error_of(f'{address}/page.pth')
    assert not list(hub.glob('page*'))  # so that the next try fetches it again
    with mmengine_loads_weights_only():
        for _ in range(2):  # the first does not leave it in the cache
            with pytest.raises(UserError, match='page.pth is a web page, no checkpoint'):
                mmengine_checkpoint.load_checkpoint(torch.nn.Linear(1, 1), f'{address}/page.pth')
        with pytest.raises(UserError, match='/missing.pth cannot be read: HTTP Error 404'):
            mmengine_checkpoint.load_checkpoint(torch.nn.Linear(1, 1), f'{address}/missing.pth')
    assert not list(hub.glob('page*'))
    (folder / 'torn-01234567.pth').write_bytes(b'PK12')
    assert 'is not the file that its name says' in error_of(f'{address}/torn-01234567.pth')
    assert not list(hub.glob('torn*'))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(depth=34), 'keys missing, first layer1.2.conv1'),
        (dict(depth=18, base_channels=32), 'shapes differ, first conv1.weight'),
        (dict(depth=50), 'shapes differ, first layer1.0.conv1.weight'),
    ],
    ids=['deeper', 'narrower', 'bottlenecks'],
)
def test_another_network(options, message, resnet18, tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save(resnet18.state_dict(), path)
    assert message in error_of(path, **options)


def test_a_shallower_network(tmp_path):
    path = tmp_path / 'resnet34.pth'
    torch.save(torchvision.models.resnet34(num_classes=2).state_dict(), path)
    assert 'keys unexpected, first layer1.2.conv1.weight' in error_of(path)


def test_other_files(resnet18, tmp_path):
    text = tmp_path / 'a.pth'
    text.write_text('not a checkpoint')
    assert 'is not a whole PyTorch checkpoint' in error_of(text)
    torn = tmp_path / 'a.safetensors'
    torn.write_bytes(b'12345678901')
    assert 'is not a whole safetensors file' in error_of(torn)
    deployed = tmp_path / 'deploy.pth'
    torch.save(switch_to_deploy(torchvision.models.resnet18(num_classes=2)).state_dict(), deployed)
    assert 'deploy form' in error_of(deployed)
