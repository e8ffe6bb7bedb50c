"""Loading a plain network's state dict into blocks is starting from that network."""

import copy

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torchvision.models import resnet18

from mmorepa import reparameterize, squeeze, switch_to_deploy
from mmorepa.convs import DBBConv2d, OREPAConv2d
from mmorepa.errors import UserError
from support import make_trained_like

FLOAT32 = 1e-5  # relative to the largest output

BLOCKS = [
    'OREPA',
    dict(type='OREPA', mode='squeezed'),
    dict(type='OREPA', mode='offline'),
    dict(type='OREPA', keep_scales=True),
    'TweakedOREPA',
    'DBB',
    dict(type='DBB', branch_norm=False),
    'RepVGG',
    'OREPA-RepVGG',
    'ACNet',
    'MobileOne',
    'ExpandNet',
]
LOADERS = {
    'torch': lambda model, state: model.load_state_dict(state),
    'mmengine': lambda model, state: load_state_dict(model, state, strict=True),
    'assign': lambda model, state: model.load_state_dict(state, assign=True),
}


def network(block=None, groups=1, bias=False, channels=24):
    """Some convolutions with BatchNorms behind them, 1x1 and 7x7 too."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=bias),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=bias),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 1, groups=groups, bias=bias),
        nn.BatchNorm2d(2 * channels),
    )
    if block is not None:
        reparameterize(model, block)
    return make_trained_like(model)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_the_function_is_kept(block, loader):
    plain, model = network().eval(), network(block).eval()
    x = torch.randn(2, 3, 32, 32)
    assert relative(model(x), plain(x)) > 0.1
    LOADERS[loader](model, plain.state_dict())
    assert relative(model(x), plain(x)) < FLOAT32


@pytest.mark.parametrize('groups', [2, 24])
@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_of_groups(block, groups):
    plain, model = network(groups=groups).eval(), network(block, groups).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert relative(model(x), plain(x)) < FLOAT32


@pytest.mark.parametrize('block', ['OREPA', 'TweakedOREPA', 'DBB', 'MobileOne', 'ExpandNet'])
def test_biases_are_taken_along(block):
    plain, model = network(bias=True).eval(), network(block, bias=True).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert relative(model(x), plain(x)) < FLOAT32


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_training_goes_on_from_there(block):
    """In training mode too, where BatchNorms use the batch."""
    plain, model = network(), network(block)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 32, 32)
    assert relative(model(x), plain(x)) < 10 * FLOAT32
    loss = model(x).square().mean()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_blocks_own_state_dicts_load_as_ever(block):
    one, other = network(block).eval(), network(block).eval()
    make_trained_like(one, seed=5).train().eval()  # it writes through `.data`
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(other(x), one(x))


@pytest.mark.parametrize('block', ['OREPA', 'DBB', 'MobileOne'])
def test_the_plain_form_is_a_plain_network(block):
    trained = network(block).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = trained(x)
    again = network(block).eval()
    again.load_state_dict(squeeze(trained).state_dict())
    assert relative(again(x), expected) < 10 * FLOAT32


#: A block, and another whose parameters it has not: other ones, more, or fewer.
OTHERS = [
    ('OREPA', 'DBB', 'lacks 3.kernel'),
    ('DBB', 'OREPA', 'has 3.kernel'),
    ('DBB', 'RepVGG', 'lacks 3.average'),
    ('RepVGG', 'DBB', 'has 3.average'),
    ('ExpandNet', 'OREPA', '0.kernel'),
]


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
@pytest.mark.parametrize('block, other, key', OTHERS)
def test_another_block_is_refused(block, other, key, load):
    """What is not strict would leave branches out, or leave them at random."""
    with pytest.raises(UserError, match=f'the state dict .*{key}.*as of another block'):
        load(network(block), network(other).state_dict(), strict=False)


@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
def test_parts_that_are_not_there_are_left_when_not_strict(block):
    """Whole blocks may be missing, and counters, which torch did not always have."""
    state = network(block).state_dict()
    some = {
        key: value
        for key, value in state.items()
        if key[0] != '3' and not key.endswith('num_batches_tracked')
    }
    model = network(block)
    assert all(key[0] == '3' or 'num' in key for key in model.load_state_dict(some, False)[0])
    assert all(torch.equal(model.state_dict()[key], value) for key, value in some.items())


@pytest.mark.parametrize('strict', [True, False], ids=['strict', 'loose'])
@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_a_deploy_form_is_refused(block, strict):
    model = network(block)
    deployed = switch_to_deploy(copy.deepcopy(network()))
    with pytest.raises(UserError, match='a deploy form whose BatchNorms are folded'):
        model.load_state_dict(deployed.state_dict(), strict=strict)
    with pytest.raises(UserError, match='a deploy form whose BatchNorms are folded'):
        load_state_dict(model, deployed.state_dict(), strict=strict)


@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
def test_another_width_is_a_mismatch(block):
    model = network(block)
    with pytest.raises(RuntimeError, match='size mismatch for 0.weight'):
        model.load_state_dict(network(channels=32).state_dict())


def test_a_stem_that_cannot_imitate_is_named():
    model = network('OREPA', channels=4)
    with pytest.raises(UserError, match=r'0\.weight: a deep linear stem of 4 channels cannot'):
        model.load_state_dict(network(channels=4).state_dict())


def test_a_block_waits_for_the_norm_that_it_takes_in():
    block = DBBConv2d(8, 8, 3, padding=1)
    block.load_state_dict(nn.Conv2d(8, 8, 3, bias=False).state_dict())
    with pytest.raises(UserError, match='without the BatchNorm behind it'):
        block(torch.randn(1, 8, 9, 9))


@pytest.mark.parametrize('strict', [True, False], ids=['strict', 'loose'])
def test_branches_that_are_missing_are_missed(strict):
    block = OREPAConv2d(8, 8, 3, bias=False)
    state = block.state_dict()
    del state['kernel.prior.weight']
    with pytest.raises(UserError, match='the state dict lacks kernel.prior.weight, as of another'):
        block.load_state_dict(state, strict)


def test_frozen_blocks_stay_frozen():
    model = network('OREPA').requires_grad_(False)
    model.load_state_dict(network().state_dict())
    assert not any(p.requires_grad for p in model.parameters())


def test_half_precision():
    plain, model = network().eval(), network('OREPA').eval().to(torch.bfloat16)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert relative(model(x.to(torch.bfloat16)).float(), plain(x)) < 0.05
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
def test_torchvisions_resnet(block):
    torch.manual_seed(0)
    plain = make_trained_like(resnet18(num_classes=5)).eval()
    model = reparameterize(resnet18(num_classes=5), block).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert relative(model(x), plain(x)) < FLOAT32


def scales(model):
    return {name: p for name, p in model.state_dict().items() if name.endswith('.scale')}


@pytest.mark.parametrize('keep', [False, True], ids=['original alone', 'scales kept'])
def test_how_branches_start(keep):
    model = reparameterize(nn.Sequential(nn.Conv2d(8, 8, 3)), dict(type='OREPA', keep_scales=keep))
    fresh = {name: scale.clone() for name, scale in scales(model).items()}
    model.load_state_dict(nn.Sequential(nn.Conv2d(8, 8, 3)).state_dict())
    for name, scale in scales(model).items():
        alone = 1.0 if '.original.' in name else 0.0
        assert torch.equal(scale, fresh[name] if keep else torch.full_like(scale, alone))


def test_a_scale_of_zero_cannot_be_kept():
    block = OREPAConv2d(8, 8, 3, branches=dict(original=0.0, pointwise=1.0), keep_scales=True)
    with pytest.raises(UserError, match="wants a branch 'original' that does not start at scale 0"):
        block.load_state_dict(nn.Conv2d(8, 8, 3).state_dict())
