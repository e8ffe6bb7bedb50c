"""The blocks with BatchNorms inside: what they amount to, and their life in a network."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa import reparameterize, squeeze, switch_to_deploy, verify
from mmorepa.convs import (
    ACNetConv2d,
    DBBConv2d,
    MobileOneConv2d,
    OREPARepVGGConv2d,
    ReparamConv2d,
    RepVGGConv2d,
)
from mmorepa.convs.blocks.normed import NormedConv2d
from support import make_trained_like

FLOAT32 = 1e-5  # relative, one block
FLOAT64 = 1e-12

BLOCKS = dict(
    DBB=DBBConv2d,
    RepVGG=RepVGGConv2d,
    ACNet=ACNetConv2d,
    MobileOne=MobileOneConv2d,
    **{'OREPA-RepVGG': OREPARepVGGConv2d},
)
BRANCHES = {
    'DBB': ['original', 'pointwise', 'average', 'pointwise_kxk'],
    'RepVGG': ['original', 'pointwise', 'identity'],
    'OREPA-RepVGG': ['original', 'pointwise', 'identity'],
    'ACNet': ['original', 'horizontal', 'vertical'],
    'MobileOne': ['original0', 'original1', 'original2', 'original3', 'pointwise', 'identity'],
}

each_block = pytest.mark.parametrize('name', BLOCKS)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item()


def names(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_children()]


def pair(channels: int = 8, **norm) -> nn.Sequential:
    """A convolution and a BatchNorm away from their defaults."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, channels, 3, 2, 1, bias=False)
    return make_trained_like(nn.Sequential(conv, nn.BatchNorm2d(channels, **norm), nn.ReLU()))


@each_block
@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3]),
    in_width=st.integers(1, 4),
    out_width=st.integers(1, 4),
    kernel_size=st.sampled_from([3, 5]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    branch_norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_merged_for_every_geometry(
    name, groups, in_width, out_width, kernel_size, stride, padding, dilation, branch_norm, seed
):
    torch.manual_seed(seed)
    size = groups * in_width, groups * out_width, kernel_size, stride, padding, dilation, groups
    options = {} if branch_norm else dict(norm=None)
    block = make_trained_like(BLOCKS[name](*size, **options), seed).double().eval()
    reach = max(d * (kernel_size - 1) + 1 for d in dilation)
    x = torch.randn(2, groups * in_width, reach + 2, reach + 5, dtype=torch.float64)
    kernel, bias = block.merged()
    assert kernel.shape == (groups * out_width, in_width, kernel_size, kernel_size)
    assert (bias is not None) == branch_norm
    plain = F.conv2d(x, kernel, bias, stride, padding, dilation, groups)
    assert relative(block(x), plain) < FLOAT64


@each_block
class TestBranches:
    def test_names(self, name):
        assert names(BLOCKS[name](8, 8, 3, padding=1)) == BRANCHES[name]

    @pytest.mark.parametrize(
        'change', [dict(out_channels=4), dict(stride=2), dict(padding=0), dict(dilation=2)]
    )
    def test_identity_only_where_it_fits(self, name, change):
        geometry = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
        found = names(BLOCKS[name](**{**geometry, **change}))
        assert found == [branch for branch in BRANCHES[name] if branch != 'identity']

    def test_identity_fits_dilated_blocks(self, name):
        block = BLOCKS[name](8, 8, 3, padding=2, dilation=2)
        assert names(block) == BRANCHES[name]

    def test_every_parameter_gets_a_gradient(self, name):
        torch.manual_seed(0)
        block = make_trained_like(BLOCKS[name](8, 8, 3, padding=1))
        # Squared, or the BatchNorms would leave nothing to be learned.
        (block(torch.randn(4, 8, 7, 7)) * torch.randn(4, 8, 7, 7)).square().sum().backward()
        for key, parameter in block.named_parameters():
            assert parameter.grad.abs().max() > 0, key

    def test_output_is_the_sum_of_normalised_branches(self, name):
        torch.manual_seed(0)
        block = BLOCKS[name](8, 8, 3, padding=1)
        x = torch.randn(16, 8, 9, 9)
        # DBB pads by running statistics, which change with every pass.
        outputs = [branch(x) for branch in copy.deepcopy(block).children()]
        for out in outputs:
            assert out.mean((0, 2, 3)).abs().max() < 1e-5
            assert (out.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-2
        torch.testing.assert_close(block(x), sum(outputs))

    def test_even_kernels_are_refused(self, name):
        with pytest.raises(ValueError, match='use nn.Conv2d for this layer') as info:
            BLOCKS[name](8, 8, 4)
        assert '\n' not in str(info.value)

    def test_large_kernels_are_refused(self, name):
        with pytest.raises(ValueError, match='sizes that it is made for'):
            BLOCKS[name](3, 8, 7, padding=3)


@pytest.mark.parametrize('rows, columns', [(1, 0), (0, 2), (1, 1)])
def test_padding_is_what_the_norm_makes_of_zero(rows, columns):
    """DBB's inner norms: a border of zeros in front of the norm, not behind it."""
    torch.manual_seed(0)
    block = make_trained_like(DBBConv2d(4, 6, 3, padding=(rows, columns))).double().eval()
    branch = block.pointwise_kxk
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    padded = F.pad(x, [columns, columns, rows, rows])
    inner = branch.inner_norm(F.conv2d(padded, branch.pointwise()))
    expected = branch.norm(F.conv2d(inner, branch.weight))
    assert relative(expected, branch(x)) < FLOAT64


def test_frozen_norms_leave_the_other_branches_at_zero():
    """As with mmdet's ``norm_cfg=dict(type='BN', requires_grad=False)``."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4).requires_grad_(False))
    with pytest.warns(UserWarning, match='start at zero and stay there'):
        reparameterize(copy.deepcopy(net), 'DBB', keep_function=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        reparameterize(net, dict(type='DBB', branch_norm=False), keep_function=True)


def test_depthwise_dbb():
    block = DBBConv2d(6, 6, 3, padding=1, groups=6)
    assert names(block) == ['original', 'average', 'pointwise_kxk']
    assert 'weight' not in dict(block.average.named_parameters(recurse=False))
    assert block.pointwise_kxk.first.shape == (12, 1, 1, 1)


def test_identity_based_pointwise_starts_as_the_identity():
    block = DBBConv2d(6, 8, 3, padding=1, groups=2)
    expected = torch.eye(3).repeat(2, 1)
    assert torch.equal(block.pointwise_kxk.pointwise()[:, :, 0, 0], expected)


@pytest.mark.parametrize('copies', [1, 3])
def test_mobileone_copies(copies):
    block = MobileOneConv2d(4, 4, 1, copies=copies)
    assert names(block) == [*[f'original{i}' for i in range(copies)], 'identity']


@pytest.mark.parametrize('copies', [0, 1.5, True, '2'])
def test_mobileone_without_a_number_of_copies(copies):
    with pytest.raises(ValueError, match=f'copies={copies!r}, wanted an integer of at least 1'):
        MobileOneConv2d(4, 4, 3, copies=copies)


def test_branch_norm_is_true_or_false():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="0: DBBConv2d: branch_norm='no', wanted True or False"):
        reparameterize(net, dict(type='DBB', branch_norm='no'))


def test_orepa_in_repvgg_starts_as_published():
    kernel = OREPARepVGGConv2d(8, 8, 3, padding=1).original.conv.kernel
    scales = {name: branch.scale.unique().tolist() for name, branch in kernel.named_children()}
    assert scales == dict(
        original=[0.25], average=[0.25], prior=[0.0], pointwise_kxk=[0.5], separable=[0.5]
    )
    bound = (3 / (8 * 9)) ** 0.5  # kaiming_uniform_(a=1) over 8 channels of 3 x 3
    largest = kernel.original.weight.abs().max().item()
    assert 0.9 * bound < largest <= bound


@each_block
class TestFormsInANetwork:
    def test_takes_in_the_norm(self, name):
        model = reparameterize(pair(), name)
        assert isinstance(model[0], NormedConv2d)
        assert not any(isinstance(module, _BatchNorm) for module in model[1:])
        assert model.state_dict().keys() == {f'0.{key}' for key in model[0].state_dict()}

    def test_deploy(self, name):
        model = make_trained_like(reparameterize(pair(), name)).eval()
        x = torch.randn(2, 6, 9, 9)
        expected = model(x)
        switch_to_deploy(model)
        assert [type(module) for module in model] == [nn.Conv2d, nn.Identity, nn.ReLU]
        assert relative(expected, model(x)) < FLOAT32
        state = copy.deepcopy(model.state_dict())
        switch_to_deploy(model)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_squeezed_is_the_plain_network(self, name):
        model = make_trained_like(reparameterize(pair(), name)).eval()
        x = torch.randn(2, 6, 9, 9)
        squeezed = squeeze(model, inplace=False)
        assert verify(model, squeezed, x).within(FLOAT32)
        plain = pair().eval()
        plain.load_state_dict(squeezed.state_dict(), strict=True)
        assert verify(squeezed, plain, x).max_abs == 0
        squeeze(squeezed)
        assert list(squeezed.state_dict()) == list(plain.state_dict())

    def test_squeezed_norm_has_the_mean_of_what_it_sees(self, name):
        model = reparameterize(pair(), name)
        x = torch.randn(16, 6, 9, 9)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = None  # the average over all that it saw
        for _ in range(20):
            model(x)
        squeezed = squeeze(model)
        seen = squeezed[0](x)
        assert (squeezed[1].running_mean - seen.mean((0, 2, 3))).abs().max() < 1e-2
        found = squeezed[1].running_var / seen.var((0, 2, 3))
        assert 0.1 < found.min() and found.max() < 10

    def test_in_float64(self, name):
        model = make_trained_like(reparameterize(pair().double(), name)).eval()
        x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
        assert verify(model, switch_to_deploy(model, inplace=False), x).within(1e-10)
        assert verify(model, squeeze(model, inplace=False), x).within(1e-10)

    @pytest.mark.parametrize('form', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, name, form):
        model = make_trained_like(reparameterize(pair(), name)).eval()
        x = torch.randn(2, 6, 9, 9)
        other = form(model)
        assert torch.equal(model(x), other(x))
        assert verify(model, squeeze(other), x).within(FLOAT32)

    def test_state_dict_round_trip(self, name):
        model = make_trained_like(reparameterize(pair(), name))
        other = reparameterize(pair(), name)
        other.load_state_dict(model.state_dict(), strict=True)
        x = torch.randn(2, 6, 9, 9)
        assert torch.equal(model.eval()(x), other.eval()(x))

    def test_norms_are_of_the_kind_they_replace(self, name):
        model = pair(eps=1e-3, momentum=0.03)
        model[1].requires_grad_(False)
        model[1] = nn.SyncBatchNorm.convert_sync_batchnorm(model[1])
        reparameterize(model, name)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        assert norms
        for norm in norms:
            assert type(norm) is nn.SyncBatchNorm
            assert (norm.eps, norm.momentum) == (1e-3, 0.03)
            assert not norm.weight.requires_grad and not norm.bias.requires_grad
        squeezed = squeeze(model)
        assert type(squeezed[1]) is nn.SyncBatchNorm
        assert (squeezed[1].eps, squeezed[1].momentum) == (1e-3, 0.03)

    def test_without_branch_norms_the_norm_stays(self, name):
        model = reparameterize(pair(), dict(type=name, branch_norm=False))
        assert type(model[1]) is nn.BatchNorm2d
        assert not any(isinstance(module, _BatchNorm) for module in model[0].modules())
        make_trained_like(model).eval()
        x = torch.randn(2, 6, 9, 9)
        plain = pair().eval()
        plain.load_state_dict(squeeze(model, inplace=False).state_dict(), strict=True)
        assert verify(model, plain, x).within(FLOAT32)
        assert verify(model, switch_to_deploy(model, inplace=False), x).within(FLOAT32)

    def test_autocast(self, name):
        model = make_trained_like(reparameterize(pair(), name))
        x = torch.randn(2, 6, 9, 9)
        with torch.autocast('cpu', torch.bfloat16):
            out = model(x)
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@each_block
def test_moves_as_one(name):
    """Device and dtype moves reach constants too."""
    block = BLOCKS[name](8, 8, 3, padding=1).double()
    assert isinstance(block, ReparamConv2d)
    tensors = [*block.parameters(), *block.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
