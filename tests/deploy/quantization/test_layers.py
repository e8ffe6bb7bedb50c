"""The numbers of the report, where they are known."""

import copy
import math
import weakref

import pytest
import torch
from torch import nn

from mmorepa.convs import switch_to_deploy
from mmorepa.deploy.quantization.layers import (
    Noise,
    Quantizer,
    channel_peaks,
    measure,
    shape_of_weights,
    weight_sqnr,
)

EXACT = 1e-5  # relative, float32


def test_noise_is_the_textbooks():
    noise = Noise()
    noise.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    noise.add(torch.tensor([0.0]), torch.tensor([2.0]))
    assert noise.sqnr == pytest.approx(10 * math.log10(25 / 5), rel=EXACT)
    assert Noise().sqnr == math.inf
    silent = Noise()
    silent.add(torch.zeros(1), torch.ones(1))
    assert silent.sqnr == -math.inf


def test_uniform_weights_lose_what_the_formula_says():
    # Step d of 2 / 255, noise d^2 / 12, signal 1 / 3: 8 bits of 6.02 dB each.
    weight = torch.rand(4, 5000, 3, 3) * 2 - 1
    weight.view(4, -1)[:, 0] = 1
    assert weight_sqnr(weight, per_channel=True) == pytest.approx(20 * math.log10(255), abs=0.1)


def test_one_scale_for_all_loses_the_small_channels():
    weight = torch.randn(2, 100, 3, 3)
    weight[1] *= 0.001
    small = Noise()
    small.add(weight[1:], Quantizer(conv_of(weight), per_channel=False).weight[1:])
    assert small.sqnr <= 0  # rounded to zero
    kept = Noise()
    kept.add(weight[1:], Quantizer(conv_of(weight), per_channel=True).weight[1:])
    assert kept.sqnr > 30


def conv_of(weight):
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3)
    conv.weight.data = weight
    return conv


def test_shape_of_weights():
    weight = torch.tensor([[1.0, -1.0], [-4.0, 4.0], [2.0, -2.0]]).reshape(3, 2, 1, 1)
    assert channel_peaks(weight).tolist() == [1, 4, 2]
    assert shape_of_weights(weight) == pytest.approx(
        dict(peak=4 / weight.std().item(), spread=2.0), rel=EXACT
    )


class Net(nn.Module):
    """Two layers that run and one that does not."""

    def __init__(self, inplace=False):
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.second(self.relu(self.norm(self.first(x))))


@pytest.fixture
def plain():
    net = Net().eval()
    net.norm.weight.data[0] = 50.0
    return net


def test_measure(plain):
    model = switch_to_deploy(plain, inplace=False)
    before = copy.deepcopy(model.state_dict())
    images = [torch.rand(4, 3, 8, 8) - 0.25 for _ in range(2)]
    evaluated = []

    def evaluate(network):
        evaluated.append(network(images[0]))
        return dict(accuracy=float(len(evaluated)))

    found = measure(model, images, evaluate=evaluate, plain=plain)
    first, second = found.layers
    assert [layer.name for layer in found.layers] == ['first', 'second']
    # Each layer alone, all, and none.
    assert [first.metrics, second.metrics] == [dict(accuracy=1.0), dict(accuracy=2.0)]
    assert (found.all_metrics, found.float_metrics) == (dict(accuracy=3.0), dict(accuracy=4.0))
    assert torch.equal(evaluated[3], model(images[0]))
    for i, j in [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]:
        assert not torch.equal(evaluated[i], evaluated[j])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    assert (first.low, first.high) == (model.first.weight.min(), model.first.weight.max())
    pixels = torch.cat(images)
    assert first.input_range == pytest.approx((pixels.min().item(), pixels.max().item()), rel=EXACT)
    # The norm blew one channel up; that is not seen before it is folded.
    assert first.spread > 20 > 3 > first.unfolded['spread']
    assert first.weight_sqnr > first.tensor_weight_sqnr
    assert second.unfolded is None
    # The last layer's output is the network's.
    assert second.output_sqnr == pytest.approx(second.network_sqnr, abs=1e-6)
    assert found.all_sqnr < min(first.network_sqnr, second.network_sqnr) + 1
    assert 20 < found.all_sqnr < 60


def test_an_activation_in_place_changes_nothing(plain):
    other = Net(inplace=True).eval()
    other.load_state_dict(plain.state_dict())
    images = [torch.rand(4, 3, 8, 8) - 0.25]
    first, second = (measure(switch_to_deploy(net), images).layers[0] for net in (plain, other))
    assert first.output_sqnr == second.output_sqnr


def test_feature_maps_of_one_batch_are_held(plain, monkeypatch):
    held, most, clone = [], [], torch.Tensor.clone

    def noted(tensor, **kwargs):
        copy = clone(tensor, **kwargs)
        held.append(weakref.ref(copy))
        most.append(sum(reference() is not None for reference in held))
        return copy

    monkeypatch.setattr(torch.Tensor, 'clone', noted)
    measure(switch_to_deploy(plain), [torch.rand(2, 3, 8, 8) for _ in range(8)])
    assert len(held) >= 2 * 2 * 8  # two layers, in float and rounded
    assert max(most) <= 4


def test_one_scale_is_worse_where_channels_differ(plain):
    model = switch_to_deploy(plain)
    images = [torch.rand(4, 3, 8, 8)]
    by_channel, by_tensor = (
        measure(model, images, per_channel).layers[0] for per_channel in (True, False)
    )
    assert by_channel.output_sqnr > by_tensor.output_sqnr
    assert by_channel.metrics == {}
