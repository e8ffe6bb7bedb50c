"""OREPAConv2d: its shapes, initial values, both modes, and its life as a convolution."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmorepa.convs import OREPAConv2d
from mmorepa.convs.orepa.branches import KXK, POINTWISE
from mmorepa.convs.rows import as_kernel
from mmorepa.errors import UserError
from support import make_trained_like

MODES_AGREE = 1e-5  # online against offline, float32, relative to the largest output
GRADIENTS_AGREE = 1e-4  # float32 against float64, relative to the largest
FLOAT64 = 1e-12


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item()


def both_modes(conv: OREPAConv2d, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    online = conv(x)
    conv.mode = 'offline'
    offline = conv(x)
    conv.mode = 'online'
    return online, offline


def subsets(names):
    names = list(names)
    return [
        subset
        for count in range(1, len(names) + 1)
        for subset in itertools.combinations(names, count)
    ]


class TestModesAgree:
    @settings(max_examples=60, deadline=None)
    @given(
        groups=st.sampled_from([1, 2, 3, 5]),
        in_width=st.integers(1, 4),
        out_width=st.integers(1, 4),
        kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
        stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
        dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        bias=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_for_every_geometry(
        self, groups, in_width, out_width, kernel_size, stride, padding, dilation, bias, seed
    ):
        torch.manual_seed(seed)
        conv = OREPAConv2d(
            groups * in_width,
            groups * out_width,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
        )
        make_trained_like(conv, seed)
        reach = max(d * (kernel_size - 1) + 1 for d in dilation)
        x = torch.randn(2, groups * in_width, reach + 2, reach + 5)
        online, offline = both_modes(conv, x)
        assert online.shape == offline.shape
        assert relative(online, offline) < MODES_AGREE
        plain = nn.Conv2d(
            groups * in_width,
            groups * out_width,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
        )
        plain.weight.data = conv.squeeze().detach()
        if bias:
            plain.bias.data = conv.bias.detach()
        torch.testing.assert_close(plain(x), online)

    @pytest.mark.parametrize('names', subsets(KXK), ids='+'.join)
    def test_for_every_branch_subset(self, names):
        torch.manual_seed(0)
        conv = make_trained_like(OREPAConv2d(6, 8, 3, padding=1, groups=2, branches=names))
        online, offline = both_modes(conv, torch.randn(2, 6, 9, 7))
        assert relative(online, offline) < MODES_AGREE
        assert [name for name, _ in conv.kernel.named_children()] == list(names)

    @pytest.mark.parametrize('names', subsets(POINTWISE), ids='+'.join)
    @pytest.mark.parametrize('channels', [(6, 8), (8, 6)], ids=['widening', 'narrowing'])
    def test_for_every_pointwise_subset(self, names, channels):
        torch.manual_seed(0)
        conv = make_trained_like(OREPAConv2d(*channels, 1, stride=2, branches=names))
        online, offline = both_modes(conv, torch.randn(2, channels[0], 9, 7))
        assert relative(online, offline) < MODES_AGREE

    def test_gradients_agree(self):
        torch.manual_seed(0)
        conv = make_trained_like(OREPAConv2d(3, 8, 7, stride=2, padding=3, bias=False)).double()
        x = torch.randn(2, 3, 15, 15, dtype=torch.float64)
        grads = []
        for out in both_modes(conv, x):
            grads.append(torch.autograd.grad(out.square().sum(), list(conv.parameters())))
        for a, b in zip(*grads):
            assert relative(a, b) < FLOAT64
            assert a.abs().max() > 0


def kaiming_bound(fan_in: int, slope: float) -> float:
    return math.sqrt(6 / ((1 + slope**2) * fan_in))


class TestInitialValues:
    @pytest.mark.parametrize(
        'kernel_size, groups, scales',
        [
            (3, 1, KXK),
            (5, 4, KXK),
            (1, 1, POINTWISE),
        ],
    )
    def test_scales(self, kernel_size, groups, scales):
        conv = OREPAConv2d(8, 16, kernel_size, groups=groups)
        found = {name: branch.scale for name, branch in conv.kernel.named_children()}
        assert list(found) == list(scales)
        for name, scale in found.items():
            assert scale.shape == (16,)
            assert (scale == scales[name]).all()

    def test_published_scales(self):
        assert KXK == dict(
            original=0.25, average=0.25, prior=0.0, pointwise_kxk=0.5, pointwise=1.0, separable=0.5
        )
        assert POINTWISE == dict(original=1.0, pointwise_pointwise=0.5)

    @pytest.mark.parametrize(
        'make, name, shape, fan_in, slope',
        [
            (dict(kernel_size=3), 'original.weight', (48, 9, 32), 288, 0),
            (dict(kernel_size=3), 'average.weight', (48, 32, 1, 1), 32, 0),
            (dict(kernel_size=3), 'prior.weight', (48, 32, 1, 1), 32, 0),
            (dict(kernel_size=3), 'pointwise.weight', (48, 32, 1, 1), 32, 0),
            (dict(kernel_size=3), 'pointwise_kxk.weight', (48, 9, 32), 288, 0),
            (dict(kernel_size=3), 'separable.depthwise', (8, 9, 32), 9, 0),
            (dict(kernel_size=3), 'separable.pointwise', (48, 8, 32), 256, 0),
            (dict(kernel_size=3, groups=4), 'pointwise_kxk.weight', (48, 9, 8), 72, 0),
            (dict(kernel_size=3, groups=8), 'pointwise_kxk.weight', (48, 9, 8), 72, 0),
            (dict(kernel_size=3, groups=8), 'separable.pointwise', (48, 8, 4), 32, 0),
            (dict(kernel_size=1), 'original.weight', (48, 1, 32), 32, 1),
            (dict(kernel_size=1), 'pointwise_pointwise.second', (48, 32, 1, 1), 32, 1),
            (dict(kernel_size=7), '1.original.weight', (48, 9, 48), 432, 0),
        ],
    )
    def test_random_parameters(self, make, name, shape, fan_in, slope):
        torch.manual_seed(0)
        weight = OREPAConv2d(32, 48, **make).kernel.get_parameter(name)
        bound = kaiming_bound(fan_in, slope)
        assert weight.shape == shape
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.9 * bound
        assert abs(weight.mean()) < 0.2 * bound

    @pytest.mark.parametrize('groups, middle', [(1, 16), (4, 16), (8, 32), (16, 32)])
    def test_pointwise_kxk_starts_as_identity(self, groups, middle):
        branch = OREPAConv2d(16, 16, 3, groups=groups).kernel.pointwise_kxk
        assert (branch.residual == 0).all()
        width = 16 // groups
        assert branch.identity.shape == (middle, width, 1, 1)
        for t in range(middle):
            row = torch.zeros(width)
            row[t % width] = 1
            assert torch.equal(branch.identity[t, :, 0, 0], row)

    @pytest.mark.parametrize(
        'channels, square', [((8, 16), 'first'), ((16, 8), 'second'), ((8, 8), 'second')]
    )
    def test_pointwise_pair_holds_a_learnable_identity(self, channels, square):
        conv = OREPAConv2d(*channels, 1)
        weight = conv.kernel.pointwise_pointwise.get_parameter(square)
        assert weight.requires_grad
        assert torch.equal(weight[:, :, 0, 0], torch.eye(8))

    def test_stem_channels(self):
        layers = OREPAConv2d(3, 64, 7).kernel
        found = [(layer.original.in_channels, layer.original.out_channels) for layer in layers]
        assert found == [(3, 64), (64, 64), (64, 64)]

    def test_init_weights_leaves_everything(self):
        conv = OREPAConv2d(4, 4, 3)
        before = copy.deepcopy(conv.state_dict())
        conv.init_weights()
        for key, value in conv.state_dict().items():
            assert torch.equal(value, before[key])


class TestBranchChoice:
    def test_mapping_sets_scales_and_leaves_them_out(self):
        conv = OREPAConv2d(4, 6, 3, branches=dict(pointwise=None, original=0.75))
        assert list(conv.kernel.state_dict()) == [
            'original.scale',
            'original.weight',
            'pointwise.weight',
        ]
        assert (conv.kernel.original.scale == 0.75).all()
        expected = as_kernel(conv.kernel.original.weight, 3) * 0.75
        expected[:, :, 1, 1] += conv.kernel.pointwise.weight[:, :, 0, 0]
        torch.testing.assert_close(conv.squeeze(), expected)

    def test_stem_takes_it_for_every_layer(self):
        conv = OREPAConv2d(3, 8, 7, branches=['original'])
        assert [list(dict(layer.named_children())) for layer in conv.kernel] == [['original']] * 3

    def test_names_of_other_shapes_are_passed_over(self):
        names = ['original', 'separable', 'pointwise_pointwise']
        assert list(dict(OREPAConv2d(4, 4, 3, branches=names).kernel.named_children())) == [
            'original',
            'separable',
        ]

    @pytest.mark.parametrize(
        'kernel_size, branches, message',
        [
            (3, ['orignal'], "no branch is named 'orignal'"),
            (3, ['original', 'original'], 'a branch is named twice'),
            (
                3,
                dict(original=float('nan')),
                "'original' has the scale nan: wanted a finite number",
            ),
            (3, dict(original='a'), "'original' has the scale 'a'"),
            (1, ['separable'], 'none of the branches separable belongs to this kernel size'),
            (3, [], 'none of the branches'),
        ],
    )
    def test_wrong_choices(self, kernel_size, branches, message):
        with pytest.raises(ValueError, match=message) as info:
            OREPAConv2d(4, 4, kernel_size, branches=branches)
        assert '\n' not in str(info.value)


class TestArguments:
    @pytest.mark.parametrize(
        'kwargs, message',
        [
            (dict(kernel_size=2), 'kernel_size=2 is not odd and square'),
            (dict(kernel_size=(1, 3)), r'kernel_size=\(1, 3\) is not odd and square'),
            (dict(kernel_size=3, groups=3), 'must both be multiples of groups=3'),
            (dict(kernel_size=3, padding_mode='reflect'), "padding_mode='reflect'"),
            (dict(kernel_size=3, padding='same', stride=2), "padding='same' wants stride 1"),
            (dict(in_channels=0, kernel_size=3), 'in_channels=0, wanted an integer of at least 1'),
            (dict(out_channels=8.0, kernel_size=3), 'out_channels=8.0, wanted an integer'),
            (dict(kernel_size='3'), "kernel_size='3', wanted an integer of at least 1"),
            (dict(kernel_size=(3, 3, 3)), r'kernel_size=\(3, 3, 3\), wanted an integer'),
            (dict(kernel_size=3, stride=0), 'stride=0, wanted an integer of at least 1'),
            (dict(kernel_size=3, dilation=(1, 1.5)), r'dilation=\(1, 1.5\), wanted an integer'),
            (dict(kernel_size=3, padding=-1), 'padding=-1, wanted an integer of at least 0'),
            (dict(kernel_size=3, padding='x'), "padding='x', wanted an integer of at least 0"),
            (dict(kernel_size=3, keep_scales='no'), "keep_scales='no', wanted True or False"),
            (dict(kernel_size=3, slope='x'), "slope='x', wanted a finite number"),
            (dict(kernel_size=3, slope=float('nan')), 'slope=nan, wanted a finite number'),
            (dict(kernel_size=3, branches=3), 'branches=3, wanted names of branches'),
        ],
    )
    def test_wrong_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message) as info:
            OREPAConv2d(**{'in_channels': 4, 'out_channels': 8, **kwargs})
        assert '\n' not in str(info.value)

    @pytest.mark.parametrize(
        'args, kwargs',
        [
            ((3, 8, 3), {}),
            ((4, 8, (3, 3), 2, 1), {}),
            ((4, 8, 5, (1, 2), (2, 1), (1, 2), 4, False), {}),
            ((3, 8, 7), dict(padding='same', dilation=2)),
            ((3, 8, 1), dict(padding='valid')),
        ],
    )
    def test_attributes_are_those_of_a_plain_convolution(self, args, kwargs):
        ours, plain = OREPAConv2d(*args, **kwargs), nn.Conv2d(*args, **kwargs)
        for name in (
            'in_channels',
            'out_channels',
            'kernel_size',
            'stride',
            'dilation',
            'groups',
            'transposed',
            'output_padding',
            'padding_mode',
        ):
            assert getattr(ours, name) == getattr(plain, name), name
        assert ours.weight.shape == plain.weight.shape
        assert (ours.bias is None) == (plain.bias is None)
        x = torch.randn(1, args[0], 20, 20)
        assert ours(x).shape == plain(x).shape

    def test_weight_cannot_be_set_while_it_trains(self):
        conv = OREPAConv2d(4, 4, 3)
        for value in (nn.Parameter(torch.zeros(4, 4, 3, 3)), torch.zeros(4, 4, 3, 3)):
            with pytest.raises(UserError, match='squeeze'):
                conv.weight = value

    def test_repr_names_the_geometry(self):
        text = repr(OREPAConv2d(4, 8, 3, 2, 1, 2, 4, False, mode='offline'))
        for part in ('4, 8', 'stride=(2, 2)', 'dilation=(2, 2)', 'groups=4', "mode='offline'"):
            assert part in text


class TestLifeCycle:
    @pytest.mark.parametrize('kernel_size', [1, 3, 7])
    def test_gradient_reaches_every_parameter(self, kernel_size):
        conv = make_trained_like(OREPAConv2d(4, 6, kernel_size, padding=kernel_size // 2))
        conv(torch.randn(2, 4, 9, 9)).square().sum().backward()
        for name, parameter in conv.named_parameters():
            assert parameter.grad.abs().max() > 0, name

    @pytest.mark.parametrize('kernel_size, groups', [(1, 2), (3, 1), (3, 2), (7, 1)])
    def test_gradcheck(self, kernel_size, groups):
        conv = make_trained_like(OREPAConv2d(2, 4, kernel_size, groups=groups, bias=False)).double()
        names, values = zip(*conv.kernel.named_parameters())

        def kernel(*values):
            return torch.func.functional_call(conv.kernel, dict(zip(names, values)), ())

        # The stem has so many parameters that a random projection of them has to do.
        assert torch.autograd.gradcheck(kernel, values, fast_mode=kernel_size == 7)

    def test_optimizer_step_lowers_the_loss(self):
        torch.manual_seed(0)
        conv = OREPAConv2d(4, 4, 3, padding=1)
        optimizer = torch.optim.SGD(conv.parameters(), lr=1e-3)
        x, target = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
        losses = []
        for _ in range(10):
            loss = (conv(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_state_dict_round_trip(self):
        source = make_trained_like(OREPAConv2d(4, 4, 3))
        target = OREPAConv2d(4, 4, 3)
        target.load_state_dict(source.state_dict())
        assert torch.equal(source.squeeze(), target.squeeze())
        assert not any('filters' in key or 'identity' in key for key in source.state_dict())

    @pytest.mark.parametrize('clone', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_are_independent(self, clone):
        conv = OREPAConv2d(4, 4, 3).eval()
        with torch.no_grad():
            before = conv.weight.clone()
            other = clone(conv)
            other.kernel.original.weight.add_(1)
            assert torch.equal(conv.weight, before)
            assert not torch.equal(other.weight, before)

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_kernel_is_float32_under_autocast(self, dtype):
        torch.manual_seed(0)
        conv = OREPAConv2d(64, 64, 3, padding=1, bias=False)
        outside = conv.squeeze()
        with torch.autocast('cpu', dtype):
            inside = conv.squeeze()
            out = conv(torch.randn(1, 64, 8, 8))
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)
        assert out.dtype == dtype

    def test_half_parameters_make_a_float32_kernel(self):
        torch.manual_seed(0)
        conv = OREPAConv2d(64, 64, 3, padding=1, bias=False).bfloat16()
        assert conv.squeeze().dtype == torch.float32
        wide = copy.deepcopy(conv).float()
        assert torch.equal(conv.squeeze(), wide.squeeze())
        assert conv.weight.dtype == torch.bfloat16
        out = conv(torch.randn(1, 64, 8, 8, dtype=torch.bfloat16))
        out.float().sum().backward()
        assert conv.kernel.original.weight.grad is not None

    def test_from_conv_takes_the_geometry(self):
        plain = nn.Conv2d(4, 8, 3, 2, 2, 2, 4, bias=False, dtype=torch.float64)
        conv = OREPAConv2d.from_conv(plain, branches=['original'])
        assert conv.weight.shape == plain.weight.shape
        assert conv.weight.dtype == torch.float64
        x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
        assert conv(x).shape == plain(x).shape
        assert conv.bias is None


@pytest.mark.parametrize('geometry', [(4, 8, 3), (4, 8, 1), (8, 8, 3, 1, 0, 1, 8), (3, 8, 7)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('grad', [True, False])
def test_output_lies_in_memory_as_the_input_does(geometry, memory_format, grad):
    """Operators that mind the strides, such as mmcv's deformable convolution, come behind."""
    conv = OREPAConv2d(*geometry).eval()
    plain = nn.Conv2d(*geometry).eval()
    x = torch.randn(2, geometry[0], 9, 9).contiguous(memory_format=memory_format)
    with torch.set_grad_enabled(grad):
        assert conv.weight.stride() == plain.weight.stride()
        found, expected = conv(x), plain.to(memory_format=memory_format)(x)
    assert found.stride() == expected.stride()
    deployed = conv.switch_to_deploy()
    assert deployed.weight.stride() == nn.Conv2d(*geometry).weight.stride()
