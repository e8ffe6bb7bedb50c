"""Which norm is behind which convolution, by the order of children and by what is computed."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from mmorepa import reparameterize, squeeze, switch_to_deploy
from mmorepa.convs.convert.pairs import conv_norm_pairs
from mmorepa.errors import UserError
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


class AsksForTheDtype(Usual):
    def forward(self, x):
        return super().forward(x.to(self.conv.weight.dtype))


class ReadsTheWeight(Usual):
    def forward(self, x):
        return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)


class AnotherNormInEval(Usual):
    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.bn if self.training else self.other)(self.conv(x))


class ByAFlag(Usual):
    """Somebody may set it."""

    def forward(self, x, activate=False):
        x = self.conv(x)
        return self.bn(x.relu() if activate else x)


class SecondName(Usual):
    def __init__(self):
        super().__init__()
        self.other = self.bn

    def forward(self, x):
        end_trace(x)
        return self.other(self.conv(x)) + self.bn(x)


class InAList(Usual):
    """A list hides who else calls them."""

    def __init__(self):
        super().__init__()
        self.layers = [dict(layer=self.conv)]

    def forward(self, x):
        end_trace(x)
        return super().forward(self.layers[0]['layer'](x))


class DependsOnInput(Usual):
    """torch.fx cannot follow it: the order of the children decides."""

    def forward(self, x):
        end_trace(x)
        return super().forward(x)


class Keeps(Usual):
    def forward(self, x):
        self.seen, self.name = x, 'later'
        return super().forward(x)


class KeepsTheOutput(Usual):
    """For whoever reads the attribute."""

    def forward(self, x):
        self.last = self.conv(x)
        return self.bn(self.last)


class Container(nn.Module):
    """Layers in a container, and what the module that has it does with them."""

    kind = nn.Sequential

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.layers = self.kind(*layers) if self.kind is nn.Sequential else self.kind(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class RunWhole(Container):
    def forward(self, x):
        return self.layers(x)


class ListOfLayers(Container):
    kind = nn.ModuleList


class InsideAnother(ListOfLayers):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(*self.layers)])


class BetweenLayers(Container):
    def forward(self, x):
        return self.layers[1](self.layers[0](x).relu())


class BetweenLayersOfAList(BetweenLayers, ListOfLayers):
    pass


class OneOfALayer(InsideAnother):
    def forward(self, x):
        return self.layers[0](x) + self.layers[0][0](x)


class BatchNorm(nn.BatchNorm2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class CallOfItsOwn(Usual):
    def __init__(self):
        super().__init__()
        self.bn = BatchNorm(4)


class Holder(nn.ModuleList):
    """Has no forward."""

    def __init__(self):
        super().__init__([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])


class UsedTwiceInARow(nn.Sequential):
    def __init__(self):
        usual = Usual()
        super().__init__(usual.conv, usual.bn, usual.conv)


PAIR = [
    Usual,
    SeveralTimes,
    WithArguments,
    AsksForTheDtype,
    DependsOnInput,
    Keeps,
    Holder,
    Container,
    RunWhole,
    ListOfLayers,
    InsideAnother,
]
NO_PAIR = [
    BehindASum,
    UsedTwice,
    UsedTwiceInARow,
    InFront,
    Repeated,
    SomethingBetween,
    ReadsTheWeight,
    AnotherNormInEval,
    ByAFlag,
    SecondName,
    InAList,
    KeepsTheOutput,
    BetweenLayers,
    BetweenLayersOfAList,
    OneOfALayer,
    CallOfItsOwn,
]


@pytest.mark.parametrize('kind', [*PAIR, *NO_PAIR])
def test_pairs(kind):
    wanted = kind in PAIR
    assert len(list(conv_norm_pairs(kind()))) == wanted


@pytest.mark.parametrize('kind', [Keeps, ReadsTheWeight, AnotherNormInEval])
def test_the_module_is_left_as_it_was(kind):
    model = reparameterize(kind())
    model.name = 'before'
    before = dict(vars(model))
    list(conv_norm_pairs(model))
    assert vars(model) == before


@pytest.mark.parametrize(
    'kind, is_seen', [(Usual, True), (ListOfLayers, True), (DependsOnInput, False), (Holder, False)]
)
def test_what_the_order_alone_tells_is_said(kind, is_seen):
    expected = (
        contextlib.nullcontext() if is_seen else pytest.warns(match=f'cannot trace {kind.__name__}')
    )
    with expected:
        reparameterize(nn.Sequential(kind()), 'DBB', keep_function=True)


def assert_left_alone(model):
    """A model in eval mode computes the same with blocks and in deploy form."""
    x = torch.randn(2, 4, 8, 8)
    expected = model(x)
    with contextlib.suppress(UserError):  # no block takes the convolution's place
        reparameterize(model, keep_function=True)
    for form in (model, switch_to_deploy(model)):
        assert (form(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize('part', ['conv', 'bn'])
def test_a_forward_of_its_own_is_kept(part):
    """As activation checkpointing and patches set it."""
    model = make_trained_like(Usual()).eval()
    layer = getattr(model, part)
    usual = layer.forward
    layer.forward = lambda x: 2 * usual(x)
    assert_left_alone(model)


@pytest.mark.parametrize('block', [None, 'OREPA', 'DBB'])
@pytest.mark.parametrize('part', ['conv', 'bn'])
def test_hooks_that_change_the_output_are_kept(part, block):
    model = make_trained_like(nn.Sequential(Usual(), Usual())).eval()
    getattr(model[0], part).register_forward_hook(lambda module, inputs, output: 2 * output)
    x = torch.randn(2, 4, 8, 8)
    expected = model(x)
    if block:
        is_unkept = block == 'DBB' and part == 'conv'
        with pytest.warns(match='0.conv: a hook is') if is_unkept else contextlib.nullcontext():
            reparameterize(model, block, keep_function=True)
    for form in (model, squeeze(copy.deepcopy(model)), switch_to_deploy(model)):
        assert (form(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize('kind', NO_PAIR)
@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
def test_what_is_no_pair_is_not_folded(kind, block):
    """A block with norms inside finds none behind the convolution and leaves it alone."""
    model = make_trained_like(nn.Sequential(kind(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = model(x)
    changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
    for form in (changed, switch_to_deploy(copy.deepcopy(changed))):
        assert (form(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def prune_bias(model):
    prune.l1_unstructured(model[0], 'bias', 0.5)


def parametrize_norm(model):
    parametrize.register_parametrization(model[1], 'weight', nn.Identity())


def forget_statistics(model):
    model[1].running_mean = model[1].running_var = None


def patch_convolution(model):
    usual = model[0]._conv_forward
    model[0]._conv_forward = lambda *args: 2 * usual(*args)


@pytest.mark.parametrize(
    'change', [prune_bias, parametrize_norm, forget_statistics, patch_convolution]
)
def test_what_is_changed_is_left_alone(change):
    model = make_trained_like(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).eval()
    change(model)
    assert_left_alone(model)
