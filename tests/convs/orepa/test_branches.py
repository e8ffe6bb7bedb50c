"""What a branch states: its formula against its convolutions, and a seventh one of the how-to."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from docs.pages import blocks

from mmorepa import OREPAConv2d, SqueezedTraining, reparameterize
from mmorepa.convs.orepa import branches
from mmorepa.convs.orepa.branches import BRANCHES
from mmorepa.convs.orepa.fast import FAST, FastBranch
from support import ROOT, by_the_formula, kernel_and_gradients, make_trained_like

FLOAT64 = 1e-12  # relative
TEN_STEPS = 1e-9  # relative, parameters after ten steps in float64

#: Lines that a branch may take in the how-to.
SHORT = 40


def size_of(kind):
    return 3 if kind.fits(3) else 1


def new_branch(kind, groups, scale=None):
    torch.manual_seed(0)
    branch = kind(4 * groups, 6 * groups, size_of(kind), groups, 0.0, scale)
    return make_trained_like(branch).double()


@pytest.mark.parametrize('groups', [1, 2, 5])
@pytest.mark.parametrize('name', BRANCHES)
def test_the_formula_is_what_the_convolutions_do(name, groups):
    branch = new_branch(BRANCHES[name], groups)
    x = torch.randn(2, 4 * groups, 7, 7, dtype=torch.float64)
    reach = branch.kernel_size // 2
    expected = x
    for weight, own_groups in branch.factors():
        expected = F.conv2d(expected, weight, groups=own_groups)
    if all(weight.shape[-1] == 1 for weight, _ in branch.factors()):
        inner = slice(reach, 7 - reach)
        expected = expected[:, :, inner, inner]
    torch.testing.assert_close(F.conv2d(x, branch(), groups=groups), expected)


@pytest.mark.parametrize('name', BRANCHES)
def test_a_scale_multiplies_each_output_channel(name):
    branch = new_branch(BRANCHES[name], 2, scale=0.5)
    bare = copy.deepcopy(branch)
    bare.scale = None
    expected = branch.scale[:, None, None, None] * bare()
    torch.testing.assert_close(branch(), expected)


@pytest.mark.parametrize('in_passes', [True, False], ids=['in passes', 'at once'])
@pytest.mark.parametrize('scale', [None, 0.5])
@pytest.mark.parametrize('name', BRANCHES)
def test_the_fast_way_is_the_formula(name, scale, in_passes):
    """Adding to what is there, and gradients of parts that follow on others."""
    kind = BRANCHES[name]
    fast, formula = FAST[kind], FastBranch(kind)
    branch = new_branch(kind, 2, scale)
    tensors = {n: branch.view(n, t.detach(), 2) for n, t in branch.tensors().items()}
    wanted = [n for n in tensors if n not in branch.constant_names]
    grad = torch.randn(2, 6, branch.kernel_size**2, 4, dtype=torch.float64)
    for is_first in (True, False):
        rows, gradients = [], []
        for way in (fast, formula):
            rows.append(torch.ones_like(grad))
            way.add(rows[-1], is_first, in_passes, **tensors)
            to = {n: torch.ones_like(tensors[n]).contiguous() for n in wanted}
            way.pull_back(grad, is_first, in_passes, to, **tensors)
            gradients.append(to)
        torch.testing.assert_close(*rows, rtol=FLOAT64, atol=FLOAT64)
        for n in wanted:
            torch.testing.assert_close(gradients[0][n], gradients[1][n], rtol=1e-9, atol=FLOAT64)


class TestSeventhBranch:
    """The how-to's, in all three modes."""

    NAMES = dict(original=0.25, bottleneck=0.5, separable=0.5)

    @pytest.fixture(autouse=True)
    def bottleneck(self, monkeypatch):
        page = blocks(ROOT / 'docs/howto/add_a_block.md')
        (code,) = [block.text for block in page if block.title == 'bottleneck.py']
        assert len(code.splitlines()) < SHORT
        monkeypatch.setitem(BRANCHES, 'bottleneck', None)  # taken out again after the test
        namespace = {'__name__': 'bottleneck'}
        monkeypatch.setitem(sys.modules, 'bottleneck', type(sys)('bottleneck'))
        exec(compile(code, 'bottleneck.py', 'exec'), namespace)
        return namespace['Bottleneck']

    def block(self, groups=1, **options):
        torch.manual_seed(0)
        conv = OREPAConv2d(
            8, 16, 3, padding=1, groups=groups, bias=False, branches=self.NAMES, **options
        )
        return make_trained_like(conv).double()

    def test_it_is_no_special_case(self, bottleneck):
        assert bottleneck not in FAST
        assert isinstance(self.block().kernel.bottleneck, bottleneck)

    @pytest.mark.parametrize('groups', [1, 2])
    def test_offline_is_online(self, groups):
        online, offline = self.block(groups), self.block(groups, mode='offline')
        x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
        torch.testing.assert_close(online(x), offline(x), rtol=1e-9, atol=FLOAT64)

    @pytest.mark.parametrize('groups', [1, 2])
    def test_gradients_are_the_formulas(self, groups):
        conv = self.block(groups)
        gradient = torch.randn_like(conv.weight)
        kernel, found = kernel_and_gradients(conv, gradient)
        with by_the_formula():
            expected_kernel, expected = kernel_and_gradients(conv, gradient)
        torch.testing.assert_close(kernel, expected_kernel)
        for own, wanted in zip(found, expected):
            torch.testing.assert_close(own, wanted)

    @pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
    @pytest.mark.parametrize('groups', [1, 2])
    def test_squeezed_is_online(self, grouped, groups):
        online = torch.nn.Sequential(self.block(groups), torch.nn.ReLU(), self.wide(groups))
        squeezed = copy.deepcopy(online)
        steps = torch.optim.SGD(online.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
        optimizer = torch.optim.SGD(squeezed.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
        training = SqueezedTraining(squeezed, optimizer, grouped=grouped)
        for step in range(10):
            x = torch.randn(
                2, 8, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
            )
            online(x).square().mean().backward()
            steps.step()
            steps.zero_grad()
            squeezed(x).square().mean().backward()
            training.step()
            training.zero_grad()
        for (name, own), wanted in zip(squeezed.state_dict().items(), online.state_dict().values()):
            assert (own - wanted).norm() <= TEN_STEPS * wanted.norm(), name

    def wide(self, groups):
        """Of the first block's groups and inputs a group, and more outputs."""
        conv = OREPAConv2d(16, 32, 3, groups=2 * groups, bias=False, branches=dict(self.NAMES))
        return make_trained_like(conv).double()

    def test_a_plain_network_takes_it_in(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.BatchNorm2d(16)).eval()
        x = torch.rand(2, 8, 9, 9)
        before = model(x)
        reparameterize(model, dict(type='OREPA', branches=self.NAMES), keep_function=True)
        torch.testing.assert_close(model(x), before)


def test_a_branch_with_a_forward_of_its_own_is_called(monkeypatch):
    class Doubled(branches.Original):
        def forward(self):
            return 2 * super().forward()

    monkeypatch.setitem(BRANCHES, 'original', Doubled)
    conv = OREPAConv2d(4, 6, 3, branches=dict(original=None), bias=False)
    kernel = conv.kernel.original.weight.unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(conv.squeeze(), 2 * kernel)
