"""Backbones initialised from a checkpoint: everything arrives, or it is an error."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

import mmorepa.det
import mmorepa.pretrain
import mmorepa.seg  # noqa: F401
from mmorepa import squeeze, switch_to_deploy
from mmorepa.backbones.pretrained import load_pretrained
from mmorepa.errors import UserError
from support import make_trained_like

LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')


def build(library, checkpoint=None, prefix='backbone.', **kwargs):
    init_cfg = checkpoint and dict(type='Pretrained', checkpoint=str(checkpoint), prefix=prefix)
    kwargs = dict(depth=18, base_channels=4, stem_channels=4) | kwargs
    return MODELS.build(dict(type=f'{library}.OREPAResNet', init_cfg=init_cfg, **kwargs))


@pytest.fixture
def pretrained():
    torch.manual_seed(0)
    return make_trained_like(build('mmpretrain'))


def save(path, state_dict, prefix='backbone.'):
    state_dict = {f'{prefix}{key}': value for key, value in state_dict.items()}
    torch.save(dict(state_dict=state_dict | {'head.fc.weight': torch.zeros(1)}), path)
    return path


@pytest.mark.parametrize('library', LIBRARIES)
def test_every_tensor_arrives_and_is_reported(library, pretrained, tmp_path, capsys):
    MMLogger.get_instance(f'test_{library}', logger_name='mmengine')
    path = save(tmp_path / 'a.pth', pretrained.state_dict())
    backbone = build(library, path)
    backbone.init_weights()
    state_dict = backbone.state_dict()
    for key, value in pretrained.state_dict().items():
        assert torch.equal(state_dict[key], value), key
    assert len(state_dict) == len(pretrained.state_dict())
    printed = capsys.readouterr()
    assert f'loaded all {len(state_dict)} tensors of {path}' in printed.out + printed.err


def without_scale(state_dict):
    return {key: value for key, value in state_dict.items() if not key.endswith('average.scale')}


@pytest.mark.parametrize(
    'change, prefix, kwargs, message',
    [
        (dict, 'backbone.', dict(depth=34), 'keys missing, first layer1.2.conv1'),
        (dict, 'neck.', {}, 'has no key that begins with backbone.'),
        (without_scale, 'backbone.', {}, 'keys missing, first conv1.kernel.0.average.scale'),
        (dict, 'backbone.', dict(base_channels=8), 'shapes differ, first'),
    ],
    ids=['depth', 'prefix', 'branch', 'width'],
)
def test_what_does_not_fit_is_an_error(change, prefix, kwargs, message, pretrained, tmp_path):
    path = save(tmp_path / 'a.pth', change(pretrained.state_dict()), prefix)
    with pytest.raises(UserError, match=message) as info:
        build('mmdet', path, **kwargs).init_weights()
    assert '\n' not in str(info.value)


ADDED = {
    'dcn': dict(
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, False, True),
    ),
    'plugin': dict(
        plugins=[
            dict(
                cfg=dict(type='mmdet.ContextBlock', ratio=0.25),
                stages=(False, False, False, True),
                position='after_conv3',
            )
        ]
    ),
}


@pytest.mark.parametrize('reparam', [dict(type='OREPA', where='layer'), None])
@pytest.mark.parametrize('kind', ADDED)
def test_what_a_config_adds_keeps_its_values(kind, reparam, tmp_path):
    """A plain checkpoint cannot have it. A part of it is an error."""
    plain = make_trained_like(build('mmdet', depth=50, reparam=None))
    path = save(tmp_path / 'a.pth', plain.state_dict())
    backbone = build('mmdet', depth=50, reparam=reparam, **ADDED[kind])
    before = backbone.state_dict()
    extra = [key for key in before if 'conv_offset' in key or 'context_block' in key]
    before = {key: before[key].clone() for key in extra}
    said = load_pretrained(backbone, str(path))
    assert f'; {len(extra)} that the config adds keep their values, such as {extra[0]}' in said
    after = backbone.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in extra)
    assert torch.equal(after['layer4.2.bn3.weight'], plain.layer4[2].bn3.weight)
    path = save(tmp_path / 'b.pth', plain.state_dict() | {extra[0]: before[extra[0]]})
    with pytest.raises(UserError, match=f'keys missing, first {extra[1]};'):
        load_pretrained(backbone, str(path))


def test_the_plain_form_goes_into_the_plain_network(pretrained, tmp_path):
    path = save(tmp_path / 'a.pth', squeeze(pretrained).state_dict())
    backbone = build('mmdet', path, reparam=None)
    backbone.init_weights()
    assert torch.equal(backbone.conv1.weight, pretrained.conv1.weight)


def test_a_list_of_initialisers_is_read_too(pretrained, tmp_path):
    path = save(tmp_path / 'a.pth', without_scale(pretrained.state_dict()))
    backbone = build('mmdet')
    backbone.init_cfg = [dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')]
    with pytest.raises(UserError, match='keys missing'):
        backbone.init_weights()


def test_a_file_with_code_is_refused(pretrained, tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path / 'ran').mkdir, ()

    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=pretrained.state_dict(), other=Code()), path)
    with pytest.raises(UserError, match='is not loaded'):
        build('mmdet', path, prefix=None).init_weights()
    assert not (tmp_path / 'ran').exists()


def test_a_missing_file_gets_one_line(tmp_path):
    with pytest.raises(UserError, match='no pretraining checkpoint at') as info:
        build('mmdet', tmp_path / 'missing.pth').init_weights()
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('library', LIBRARIES)
def test_training_the_deploy_form_is_warned_of(library, recwarn):
    backbone = build(library)
    backbone.train()
    assert not backbone.deploy
    assert not [w for w in recwarn if 'deploy form' in str(w.message)]
    squeeze(backbone).train()
    assert not [w for w in recwarn if 'deploy form' in str(w.message)]
    switch_to_deploy(backbone).eval()
    assert backbone.deploy
    with pytest.warns(UserWarning, match='in deploy form, without BatchNorms'):
        backbone.train()
