"""Names, networks, and a stand-in for the released code."""

import sys

import pytest
import torch
from torch import nn

from mmorepa.convs import DBBConv2d, OREPAConv2d
from mmorepa.errors import UserError
from mmorepa.lab.benchmark import released
from mmorepa.lab.benchmark.subjects import (
    CLASSES,
    NETWORKS,
    Subject,
    build,
    loss_of,
    parse,
    scaled,
    tensors_in,
)
from support import CONFIG

SQUEEZED = dict(type='OREPA', mode='squeezed')

#: Written by this test: as much of an interface as the benchmark calls.
STAND_IN = """
import torch
from torch import nn
from helper import Block

kind, deploy = 'base', True


def switch_conv_bn_impl(name):
    global kind
    kind = name


def switch_deploy_flag(flag):
    global deploy
    deploy = flag
    print('deploy flag: ', deploy)


def conv_bn(in_channels, out_channels, kernel_size, padding):
    return Block(in_channels, out_channels, kernel_size)


def build_model(arch):
    from models.net import Net

    model = Net()
    model.arch, model.kind, model.deploy = arch, kind, deploy
    return model
"""
HELPER = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size):
        super().__init__()
        size = (kernel_size, kernel_size)
        self.kernel = nn.Parameter(torch.randn(out_channels, in_channels, *size))

    def weight_gen(self):
        return 2 * self.kernel
"""
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 1000)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like the released code from here."""
    folder = tmp_path / 'released'
    (folder / 'models').mkdir(parents=True)
    (folder / 'convnet_utils.py').write_text(STAND_IN)
    (folder / 'helper.py').write_text(HELPER)
    (folder / 'models' / 'net.py').write_text(NET)
    return str(folder)


class TestParse:
    @pytest.mark.parametrize(
        'text, expected',
        [
            ('none', Subject('none')),
            ('None', Subject('none')),
            ('dbb', Subject('DBB', 'DBB')),
            ('OREPA-offline', Subject('OREPA-offline', dict(type='OREPA', mode='offline'))),
            ('orepa-squeezed', Subject('OREPA-squeezed', SQUEEZED)),
            ('OREPA-shared-out', Subject('OREPA-shared-out', SQUEEZED, shared_out=True)),
            ('released-orepa', Subject('released-OREPA', released='OREPA')),
            (str(CONFIG), Subject(CONFIG.stem, config=str(CONFIG))),
        ],
    )
    def test_names(self, text, expected):
        assert parse(text) == expected

    @pytest.mark.parametrize('text', ['DBBB', 'released-DBBB', 'nowhere/config.py'])
    def test_others(self, text):
        with pytest.raises(UserError, match='choose from none, .*config file|check the path'):
            parse(text)


class TestBuild:
    @pytest.mark.parametrize(
        'network, width, subject, block',
        [
            ('resnet18', 0.125, 'DBB', DBBConv2d),
            ('resnet50', 0.125, 'OREPA', OREPAConv2d),
            ('resnext50', 0.25, 'OREPA', OREPAConv2d),
            ('repvgg-a0', 0.125, 'OREPA', OREPAConv2d),
            ('repvgg-a0', 0.125, 'DBB', DBBConv2d),
        ],
    )
    def test_network_by_name(self, network, width, subject, block):
        made = build(parse(subject), network, width)
        assert made.training
        assert any(isinstance(module, block) for module in made.modules())
        plain = build(parse('none'), network, width)
        assert not any(isinstance(module, block) for module in plain.modules())
        for model in (made, plain):
            assert model(torch.zeros(2, 3, 32, 32)).shape == (2, CLASSES)

    @pytest.mark.parametrize('network', ['resnet18', 'resnext50', 'repvgg-a0'])
    def test_width_is_of_every_layer(self, network):
        def channels(width):
            model = build(parse('none'), network, width)
            return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]

        assert [2 * c for c in channels(0.25)] == channels(0.5)

    def test_frozen_stages(self):
        model = build(parse('OREPA'), 'resnet18', 0.125, frozen_stages=4)
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            'fc.weight',
            'fc.bias',
        ]

    def test_config(self, tmp_path):
        narrow = tmp_path / 'narrow.py'
        narrow.write_text(
            f'_base_ = [{str(CONFIG)!r}]\n'
            # MMEngine takes a text for a list of one.
            "custom_imports = dict(imports='mmorepa.pretrain')\n"
            'model = dict(backbone=dict(base_channels=8, stem_channels=8), '
            'head=dict(in_channels=64))\n'
        )
        model = build(parse(str(narrow)), None)
        assert model.training
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        with pytest.raises(UserError, match='change them in the config instead'):
            build(parse(str(narrow)), None, width=0.5)

    @pytest.mark.parametrize(
        'kwargs, message',
        [
            (dict(network='resnet19'), 'choose from resnet18, '),
            (dict(network='resnet18', width=0.3), 'wanted a factor'),
            (dict(network='resnet18', width=0), 'wanted a factor'),
        ],
        ids=str,
    )
    def test_not_there(self, kwargs, message):
        with pytest.raises(UserError, match=message) as info:
            build(parse('none'), **kwargs)
        assert '\n' not in str(info.value)

    def test_scaled(self):
        assert scaled(64, 1.5) == 96


class TestReleased:
    def test_network(self, checkout):
        model = build(parse('released-DBB'), 'resnet18', released_path=checkout)
        assert (model.arch, model.kind, model.deploy) == ('ResNet-18', 'DBB', False)
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, CLASSES)

    @pytest.mark.parametrize(
        'network, subject, kind',
        [
            ('resnet50', 'released-none', 'base'),
            ('resnet50', 'released-OREPA', 'OREPA'),
            ('repvgg-a0', 'released-OREPA', 'OREPA_VGG'),
        ],
    )
    def test_its_own_names(self, checkout, network, subject, kind):
        assert build(parse(subject), network, released_path=checkout).kind == kind

    def test_every_network_has_a_name_here(self):
        assert set(released.NETWORKS) <= set(NETWORKS)

    def test_block(self, checkout):
        block = released.build_block(checkout, 4, 6, 3)
        assert block.weight_gen().shape == (6, 4, 3, 3)

    def test_nothing_is_left_behind(self, checkout, tmp_path, capsys):
        before = list(sys.path), sys.dont_write_bytecode
        modules = set(sys.modules)
        build(parse('released-OREPA'), 'resnet18', released_path=checkout)
        assert (list(sys.path), sys.dont_write_bytecode) == before
        left = set(sys.modules) - modules
        assert not {'convnet_utils', 'helper', 'models', 'models.net'} & left
        assert not list(tmp_path.rglob('__pycache__'))
        assert capsys.readouterr().out == ''

    @pytest.mark.parametrize(
        'kwargs, message',
        [
            (dict(network='resnet152'), 'released code has no resnet152'),
            (dict(network='resnet18', width=0.5), 'width 1 without frozen stages only'),
            (dict(network='resnet18', frozen_stages=1), 'width 1 without frozen stages only'),
        ],
        ids=str,
    )
    def test_what_it_does_not_have(self, checkout, kwargs, message):
        with pytest.raises(UserError, match=message):
            build(parse('released-OREPA'), released_path=checkout, **kwargs)

    @pytest.mark.parametrize('path', [None, '.'])
    def test_no_checkout(self, path):
        with pytest.raises(UserError, match='checkout of'):
            build(parse('released-OREPA'), 'resnet18', released_path=path)


def test_loss_of_logits():
    logits = torch.tensor([[2.0, 0.0, 0.0]])
    expected = nn.functional.cross_entropy(logits, torch.tensor([1]))
    assert loss_of(logits, torch.tensor([7])) == expected


def test_loss_of_anything_else():
    ones = torch.ones(1, 2, 3, 3)
    nested = (ones, [dict(a=2 * ones), None], 'text')
    assert len(tensors_in(nested)) == 2
    assert loss_of(nested, torch.tensor([0])) == 1 + 4
