"""The network of a config with a checkpoint's values, in the form that is asked for."""

import pytest
import torch

from mmorepa.checkpoints import load_checkpoint
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import squeeze, switch_to_deploy
from mmorepa.engine.data import build_loader
from mmorepa.errors import UserError
from mmorepa.lab.network import FRESH, load_network
from support import CONFIG, make_trained_like


def refused(message, *args, **kwargs):
    with pytest.raises(UserError, match=message) as info:
        load_network(*args, **kwargs)
    assert '\n' not in str(info.value)


def test_a_checkpoint(narrow_config, training_checkpoint):
    network = load_network(narrow_config(), training_checkpoint)
    assert str(network) == f'{CONFIG.name}, epoch_3.pth'
    assert not network.model.training
    wanted = load_checkpoint(training_checkpoint)['state_dict']
    found = network.model.state_dict()
    assert all(torch.equal(found[key].cpu(), value) for key, value in wanted.items())


def test_the_start_of_training(narrow_config):
    first, again = (load_network(narrow_config()) for _ in range(2))
    assert first.checkpoint == FRESH
    for a, b in zip(first.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_load_from(narrow_config, training_checkpoint):
    cfg = narrow_config(load_from=str(training_checkpoint))
    assert load_network(cfg).checkpoint == 'epoch_3.pth'


def test_load_from_a_plain_network(narrow_config, tmp_path):
    """As training does: blocks imitate its convolutions."""
    where = {'model.backbone.reparam.where': 'layer'}
    plain = make_trained_like(build_model(narrow_config(**{'model.backbone.reparam': None}))).eval()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    network = load_network(narrow_config(load_from=str(tmp_path / 'plain.pth'), **where))
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network.model.cpu()(x), plain(x), rtol=1e-4, atol=1e-4)
    torch.save(dict(state_dict=plain.backbone.state_dict()), tmp_path / 'backbone.pth')
    refused('load_from of the config', narrow_config(load_from=str(tmp_path / 'backbone.pth')))


@pytest.mark.parametrize('change, form', [(squeeze, 'plain'), (switch_to_deploy, 'deploy')])
def test_other_forms(change, form, narrow_config, tmp_path):
    path = tmp_path / 'converted.pth'
    torch.save(dict(state_dict=change(build_model(narrow_config())).state_dict()), path)
    refused(f'converted.pth is in {form} form, its', narrow_config(), path)
    assert load_network(narrow_config(), path, training_form=False).checkpoint == 'converted.pth'


def test_a_plain_network(narrow_config):
    cfg = narrow_config(**{'model.backbone.reparam': None})
    refused('ImageClassifier has no generated kernels', cfg)
    load_network(cfg, training_form=False)


def test_a_checkpoint_that_is_not_there(narrow_config):
    refused('no checkpoint at nowhere.pth', narrow_config(), 'nowhere.pth')


def test_a_checkpoint_of_another_network(narrow_config, training_checkpoint):
    refused('does not fit', narrow_config(**{'model.backbone.depth': 34}), training_checkpoint)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'test_dataloader': None}, 'has no test_dataloader: wanted one'),
        (
            {'test_dataloader.dataset.data_root': 'nowhere'},
            'the test data .* is not there: .*nowhere',
        ),
    ],
)
def test_data_that_is_not_there(options, message, narrow_config):
    cfg = narrow_config(**options)
    build_model(cfg)  # sets the default scope, as a network that is loaded does
    with pytest.raises(UserError, match=message) as info:
        build_loader(cfg, 'test_dataloader')
    assert '\n' not in str(info.value)
