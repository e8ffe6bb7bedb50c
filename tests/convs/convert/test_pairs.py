"""Which norm is behind which convolution, by the order of children and by what is computed."""

import copy

import pytest
import torch
from torch import nn

from mmorepa import reparameterize, switch_to_deploy
from mmorepa.convs.convert.pairs import conv_norm_pairs
from support import end_trace, make_trained_like

TOLERANCE = 1e-5  # relative, float32


class Usual(nn.Module):
    """A convolution, a norm, and one of several things between, behind or beside them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class BehindASum(Usual):
    """As in timm's RepViT."""

    def forward(self, x):
        return self.bn(self.conv(x) + x)


class UsedTwice(Usual):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class InFront(Usual):
    def forward(self, x):
        return self.conv(self.bn(x))


class Repeated(Usual):
    """The first of two calls has no norm behind it."""

    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


class SomethingBetween(Usual):
    def forward(self, x):
        return self.bn(self.conv(x).relu())


class SeveralTimes(Usual):
    def forward(self, x):
        return self.bn(self.conv(self.bn(self.conv(x))))


class WithArguments(Usual):
    """As mmcv's ConvModule has them."""

    def forward(self, x, activate=True, norm=True):
        x = self.conv(x)
        if norm:
            x = self.bn(x)
        return x.relu() if activate else x


class DependsOnInput(Usual):
    """torch.fx cannot follow it: the order of the children decides."""

    def forward(self, x):
        end_trace(x)
        return super().forward(x)


class Keeps(Usual):
    def forward(self, x):
        self.seen, self.name = x, 'later'
        return super().forward(x)


class Holder(nn.ModuleList):
    """Has no forward."""

    def __init__(self):
        super().__init__([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])


PAIR = [Usual, SeveralTimes, WithArguments, DependsOnInput, Keeps, Holder]
NO_PAIR = [BehindASum, UsedTwice, InFront, Repeated, SomethingBetween]


@pytest.mark.parametrize('kind', [*PAIR, *NO_PAIR])
def test_pairs(kind):
    wanted = kind in PAIR
    assert len(list(conv_norm_pairs(kind()))) == wanted


def test_the_module_is_left_as_it_was():
    model = Keeps()
    model.name = 'before'
    before = dict(vars(model))
    list(conv_norm_pairs(model))
    assert vars(model) == before


@pytest.mark.parametrize('kind', NO_PAIR)
@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
def test_what_is_no_pair_is_not_folded(kind, block):
    """A block with norms inside finds none behind the convolution and leaves it alone."""
    model = make_trained_like(nn.Sequential(kind(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 4, 8, 8)
    expected = model(x)
    changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
    for form in (changed, switch_to_deploy(copy.deepcopy(changed))):
        assert (form(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()
