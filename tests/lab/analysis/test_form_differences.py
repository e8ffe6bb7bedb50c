"""Differences between forms, layer by layer: none where all is well, and faults that are put in."""

import math

import pytest
import torch
from torch import nn

from downstream import narrow
from mmorepa import OREPAConv2d
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import DBBConv2d, squeeze, switch_to_deploy
from mmorepa.convs.blocks.normed import AbsorbedNorm
from mmorepa.engine.run import load_config
from mmorepa.lab.analysis import form_differences
from mmorepa.lab.analysis.form_differences import (
    NOTHING,
    Difference,
    compare_layers,
    difference,
    gain_of,
    worse,
)
from support import ROOT, end_trace, make_trained_like

ROUNDING = 1e-5  # relative, two ways to the same number in float32
BROKEN = 1e-2  # relative, no rounding


class Net(nn.Module):
    """Two layers one after the other, ``mode`` as OpenMMLab's models have it."""

    def __init__(self, block=OREPAConv2d):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = OREPAConv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = block(4, 4, 3, padding=1)
        self.bn2 = (
            AbsorbedNorm(nn.BatchNorm2d(4), self.conv2) if block is DBBConv2d else nn.BatchNorm2d(4)
        )
        self.last = OREPAConv2d(4, 5, 1)

    def forward(self, x, mode='tensor'):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.last(self.relu(self.bn2(self.conv2(x))))


class Swapped(Net):
    """Holds a BatchNorm behind a convolution that runs before another one."""

    def forward(self, x, mode='tensor'):
        end_trace(x)
        x = self.relu(self.bn2(self.conv1(x)))
        return self.last(self.relu(self.bn1(self.conv2(x))))


class NormFirst(Net):
    """Runs a BatchNorm in front of the convolution that it is held behind."""

    def forward(self, x, mode='tensor'):
        end_trace(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.last(self.conv2(self.bn2(x)))


class Twice(Net):
    """Runs a layer twice."""

    def forward(self, x, mode='tensor'):
        x = self.relu(self.bn1(self.conv1(x)))
        for _ in range(2):
            x = self.relu(self.bn2(self.conv2(x)))
        return self.last(x)


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def compare(model):
    layers, agreement = compare_layers(make_trained_like(model).eval(), images())
    return {layer.name: layer for layer in layers}, agreement


@pytest.mark.parametrize(
    'make, kinds',
    [
        (Net, ['OREPAConv2d 3x3', 'OREPAConv2d 3x3', 'OREPAConv2d 1x1']),
        (lambda: Net(DBBConv2d), ['OREPAConv2d 3x3', 'DBBConv2d 3x3', 'OREPAConv2d 1x1']),
        (lambda: squeeze(Net()), ['Conv2d 3x3', 'Conv2d 3x3']),
    ],
    ids=['OREPA', 'DBB', 'plain'],
)
def test_where_all_is_well(make, kinds):
    layers, agreement = compare(make())
    assert [layer.kind for layer in layers.values()] == kinds
    assert list(layers) == ['conv1', 'conv2', 'last'][: len(kinds)]
    for layer in layers.values():
        assert layer.follows and layer.calls == 1
        assert 0 <= layer.alone.relative < ROUNDING
        assert 0 <= layer.so_far.relative < ROUNDING
    assert agreement.within(ROUNDING)


def test_the_model_is_left_as_it_was():
    model = make_trained_like(Net()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compare_layers(model, images())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize('guilty, later', [('conv1', 'conv2'), ('conv2', 'last')])
def test_a_fault_is_found_in_its_layer_alone(guilty, later, monkeypatch):
    def with_a_fault(model, inplace):
        after = switch_to_deploy(model, inplace=inplace)
        after.get_submodule(guilty).weight.data[0] *= 1.5
        return after

    monkeypatch.setattr(form_differences, 'switch_to_deploy', with_a_fault)
    layers, agreement = compare(Net())
    assert layers[guilty].alone.relative > BROKEN
    assert all(layers[name].alone.relative < ROUNDING for name in layers if name != guilty)
    # It goes on from there.
    assert layers[later].so_far.relative > BROKEN > ROUNDING
    assert not agreement.within()
    earlier = list(layers)[: list(layers).index(guilty)]
    assert all(layers[name].so_far.relative < ROUNDING for name in earlier)


@pytest.mark.parametrize('make, guilty', [(Swapped, ['conv1', 'conv2']), (NormFirst, ['conv2'])])
def test_an_order_that_is_another_one(make, guilty):
    layers, agreement = compare(make())
    assert [name for name, layer in layers.items() if not layer.follows] == guilty
    assert not agreement.within()


def test_a_layer_that_runs_twice():
    layers, agreement = compare(Twice())
    assert layers['conv2'].calls == 2
    assert layers['conv2'].alone.relative < ROUNDING
    assert agreement.within(ROUNDING)


def test_a_layer_that_does_not_run():
    model = Net()
    model.spare = OREPAConv2d(3, 4, 3)
    layers, _ = compare(model)
    assert list(layers)[-1] == 'spare'
    assert layers['spare'].calls == 0
    assert math.isnan(layers['spare'].alone.relative)


def test_not_a_number():
    model = make_trained_like(Net()).eval()
    model.conv2.kernel.original.weight.data[0, 0, 0] = math.nan
    layers, agreement = compare_layers(model, images())
    found = {layer.name: layer for layer in layers}
    assert math.isnan(found['conv2'].alone.relative)
    assert found['conv1'].alone.relative < ROUNDING
    assert not agreement.within()


def test_a_two_stage_detector():
    """Its forms are compared part by part, each on the first one's input."""
    path = ROOT / 'configs' / 'coco' / 'faster-rcnn_orepa-r50_fpn_1x_coco.py'
    cfg = load_config(path)
    cfg.merge_from_dict({**narrow(cfg), 'model.backbone.init_cfg': None})
    torch.manual_seed(0)
    layers, agreement = compare_layers(build_model(cfg), torch.randn(1, 3, 64, 64))
    assert len(layers) == 53
    assert all(layer.alone.relative < ROUNDING for layer in layers)
    assert all(layer.so_far.relative < 10 * ROUNDING for layer in layers)
    assert agreement.within()


class TestDifference:
    def test_numbers(self):
        found = difference(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0]))
        assert found == Difference(0.5, 0.125)

    def test_of_nothing_but_zeros(self):
        assert difference(torch.zeros(2), torch.tensor([0.0, 2.0])) == Difference(2.0, 2.0)

    def test_shapes(self):
        assert difference(torch.zeros(2), torch.zeros(3)) is NOTHING

    @pytest.mark.parametrize('order', [1, -1])
    def test_the_worse_one(self, order):
        first, second = [Difference(1.0, 0.1), Difference(0.5, math.nan)][::order]
        found = worse(first, second)
        assert found.max_abs == 1.0
        assert math.isnan(found.relative)
        assert worse(first, NOTHING) is worse(NOTHING, first) is first


def test_gain():
    norm = nn.BatchNorm2d(2, eps=0)
    norm.running_var.copy_(torch.tensor([0.25, 4.0]))
    norm.weight.data.copy_(torch.tensor([-3.0, 2.0]))
    assert gain_of(norm) == 6
    assert gain_of(nn.BatchNorm2d(2, affine=False, eps=0)) == 1
    assert math.isnan(gain_of(nn.Identity()))
