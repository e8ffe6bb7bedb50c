import copy
import io
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from mmorepa.convs import OREPAConv2d, TweakedOREPAConv2d, reparameterize, squeeze
from mmorepa.convs.blocks.gradient_tweaking import compose, multiplier, tweak
from mmorepa.convs.kernels import compose_chain
from mmorepa.convs.orepa import branches
from mmorepa.errors import UserError

EXACT = 1e-10  # relative, float64, several steps
ROUNDING = 1e-5  # relative, float32
BFLOAT16 = 0.02  # relative, products of bfloat16 in another order
SAMPLED = 0.12  # relative, in the Frobenius norm; means over BLOCKS fresh blocks
BLOCKS = 30


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def cosine(a, b):
    return ((a * b).sum() / (a.norm() * b.norm())).item()


LINEAR = dict(original=0.3, average=0.7, prior=-0.4, pointwise=1.1)
SGD = dict(lr=0.05, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize('optimizer', [SGD, dict(SGD, nesterov=True), dict(lr=0.5)], ids=str)
@pytest.mark.parametrize(
    'shape, branches',
    [
        ((4, 6, 3), LINEAR),
        ((4, 6, 5), LINEAR),
        ((4, 6, 3, 2), LINEAR),
        ((4, 6, 3), dict(average=0.7, pointwise=None)),
        ((4, 6, 1), dict(original=0.6)),
    ],
    ids=str,
)
def test_linear_branches_under_constant_scales(float64, shape, branches, optimizer):
    """Plain SGD on the branches is SGD on the kernel with the tweaked gradient, step by step."""
    *channels, size, groups = shape if len(shape) == 4 else (*shape, 1)
    options = dict(padding=size // 2, groups=groups, bias=False, branches=branches)
    torch.manual_seed(0)
    block = OREPAConv2d(*channels, size, **options)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(not name.endswith('scale'))
    torch.manual_seed(0)
    tweaked = TweakedOREPAConv2d(*channels, size, train_scales=False, **options)
    assert torch.equal(tweaked.weight, block.squeeze())

    start = tweaked.weight.detach().clone()
    nets = [nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU()) for conv in (block, tweaked)]
    trained = [[p for p in net.parameters() if p.requires_grad] for net in nets]
    optimizers = [torch.optim.SGD(parameters, **optimizer) for parameters in trained]
    for _ in range(6):
        x = torch.randn(3, 4, 7, 7)
        for net, step in zip(nets, optimizers):
            step.zero_grad()
            (net(x) * torch.arange(6.0)[:, None, None]).square().mean().backward()
            step.step()
        assert relative(tweaked.weight, block.squeeze()) < EXACT
    assert relative(tweaked.weight, start) > 0.01


def measured(make, train_scales):
    """The mean of ``J J^T`` over fresh blocks, from autograd: (O, k^2, k^2)."""
    total = 0
    for _ in range(BLOCKS):
        kernel = make().kernel
        parameters = {name: p.detach() for name, p in kernel.named_parameters()}
        jacobian = jacrev(partial(functional_call, kernel), 0)(parameters, ())
        for name, part in jacobian.items():
            if train_scales or not name.endswith('scale'):
                part = part.flatten(4).flatten(2, 3)
                total += torch.einsum('oikp,oilp->okl', part, part) / part.shape[1]
    return total / BLOCKS


SHAPES = dict(
    original=(4, 5, 3),
    average=(4, 5, 3),
    prior=(4, 5, 3),
    pointwise=(4, 5, 3),
    pointwise_kxk=(4, 5, 3),
    separable=(4, 5, 3),
    pointwise_pointwise=(4, 5, 1),
)


@pytest.mark.parametrize('train_scales', [False, True], ids=['scales-fixed', 'scales-trained'])
@pytest.mark.parametrize(
    'shape, options',
    [
        *[(shape, dict(branches={name: 0.7})) for name, shape in SHAPES.items()],
        ((4, 6, 3, 2), {}),
        ((10, 10, 3, 5), dict(branches=['pointwise_kxk'])),
        ((4, 4, 5), dict(branches=dict(original=0.25, prior=0.5, separable=0.5))),
        ((5, 4, 3), dict(slope=1.0)),
        ((6, 4, 1), {}),
        ((4, 6, 1, 2), {}),
        ((2, 4, 7), {}),
        ((2, 4, 7, 2), dict(branches=dict(original=0.5, prior=0.5, pointwise=1.0))),
    ],
    ids=str,
)
def test_expectation_over_the_initial_values(float64, shape, options, train_scales):
    *channels, size, groups = shape if len(shape) == 4 else (*shape, 1)

    def make():
        return OREPAConv2d(*channels, size, groups=groups, bias=False, **options)

    torch.manual_seed(0)
    expected = multiplier(make(), train_scales)
    assert expected.dtype == torch.float64
    assert relative(expected.transpose(1, 2), expected) < EXACT
    found = measured(make, train_scales)
    if len(expected) == 1:
        # The same for all output channels, whose mean is nearer to it.
        found = found.mean(0, keepdim=True)
    assert relative(found, expected) < SAMPLED * math.sqrt(size)


@pytest.mark.parametrize('per_channel', [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
@pytest.mark.parametrize('groups', [1, 2])
def test_moments_of_a_composition(float64, groups, per_channel):
    """Against products of kernels drawn with these covariances."""
    torch.manual_seed(0)
    channels, draws = 4, 3000
    roots = [torch.randn(channels if each else 1, 9, 9) / 3 for each in per_channel]
    first, second = (
        torch.einsum('okl,oil->oik', root.expand(channels, -1, -1), torch.randn(channels, n, 9))
        for root, n in zip(roots, (draws, channels // groups * draws))
    )
    # Draws beside each other as input channels; each composition has kernels of its own.
    composed = torch.stack(
        [
            compose_chain([a.view(-1, 1, 3, 3), b.view(channels, -1, 3, 3)], groups)
            for a, b in zip(first.unbind(1), second.unflatten(1, (draws, -1)).unbind(1))
        ],
        1,
    ).flatten(2)
    found = torch.einsum('oik,oil->okl', composed, composed) / draws
    expected = compose(*[root @ root.transpose(1, 2) for root in roots], channels, groups)
    if len(expected) == 1:
        found = found.mean(0, keepdim=True)
    assert relative(found, expected.expand_as(found)) < SAMPLED


@pytest.mark.parametrize(
    'shape, nearer',
    [((64, 64, 3), 0.02), ((3, 32, 7), 0.2), ((64, 16, 1), 0.0)],
    ids=['3x3', 'stem', '1x1'],
)
def test_a_first_step_of_all_branches(shape, nearer):
    """One draw of the initial values, against the expectation over all."""
    in_channels, out_channels, size = shape
    torch.manual_seed(0)
    block = OREPAConv2d(*shape, padding=size // 2, bias=False)
    kernel = block.squeeze()
    x = torch.randn(4, in_channels, 10, 10)
    y = nn.functional.conv2d(x, kernel, padding=size // 2)
    y = nn.functional.batch_norm(y, None, None, training=True)
    loss = (y - torch.randn_like(y)).square().mean()
    (grad,) = torch.autograd.grad(loss, kernel, retain_graph=True)
    loss.backward()
    before = kernel.detach()
    torch.optim.SGD(block.parameters(), lr=1e-3).step()
    step = (before - block.squeeze().detach()) / 1e-3

    tweaked = tweak(grad, multiplier(block).float())
    plain = cosine(step, grad)
    # In expectation alone: what the block's own values add goes across channels.
    assert cosine(step, tweaked) >= max(plain + nearer - ROUNDING, 0.7)
    assert 0.6 < (tweaked.norm() / step.norm()).item() < 1.1


def test_the_prior_contributes_nothing_but_its_scale():
    """Its scale starts at zero, so that only training the scale moves the kernel."""
    block = OREPAConv2d(4, 6, 3, branches=['prior'])
    assert not multiplier(block, train_scales=False).any()
    filters = block.kernel.prior.filters.flatten(1)
    expected = 2 / 4 * filters[:, :, None] * filters[:, None, :]
    assert relative(multiplier(block), expected) < ROUNDING


@pytest.mark.parametrize('channels', [1, 6], ids=['shared', 'per-channel'])
@pytest.mark.parametrize('size', [1, 3])
def test_tweak_is_a_product_over_taps(size, channels):
    grad = torch.randn(6, 4, size, size)
    matrix = torch.randn(channels, size**2, size**2)
    matrix = matrix + matrix.transpose(1, 2)
    expected = torch.einsum('okl,oil->oik', matrix.expand(6, -1, -1), grad.flatten(2))
    assert relative(tweak(grad, matrix), expected.view(grad.shape)) < ROUNDING


class TestTweakedOREPAConv2d:
    @pytest.mark.parametrize('size', [1, 3, 5, 7])
    def test_starts_as_the_block_does_and_looks_like_a_plain_convolution(self, size):
        shape = dict(padding=size // 2, stride=2)
        torch.manual_seed(0)
        block = OREPAConv2d(3, 8, size, **shape)
        torch.manual_seed(0)
        tweaked = TweakedOREPAConv2d(3, 8, size, **shape)
        plain = nn.Conv2d(3, 8, size, **shape)
        plain.load_state_dict(tweaked.state_dict())
        x = torch.randn(2, 3, 9, 9)
        assert relative(tweaked(x), plain(x)) < ROUNDING
        assert relative(tweaked(x), block(x)) < ROUNDING
        assert type(squeeze(tweaked)) is nn.Conv2d
        assert relative(tweaked(x), plain(x)) < ROUNDING

    def test_the_constant_follows_from_the_arguments(self):
        first, second = (TweakedOREPAConv2d(3, 8, 7) for _ in range(2))
        assert not torch.equal(first.weight, second.weight)
        assert torch.equal(first.multiplier, second.multiplier)

    @staticmethod
    def gradients(conv, x):
        """Of the weight, tweaked, and as a plain convolution has it."""
        found = []
        for form in (conv, squeeze(conv, inplace=False)):
            form.zero_grad()
            form(x).float().square().sum().backward()
            found.append(form.weight.grad.float())
        return found

    @pytest.mark.parametrize(
        'change',
        [
            copy.deepcopy,
            lambda conv: load(save(conv)),
            lambda conv: conv.to(memory_format=torch.channels_last),
            lambda conv: conv.double().float(),
        ],
        ids=['deepcopy', 'pickle', 'channels_last', 'dtype'],
    )
    def test_gradients_are_tweaked_after(self, change):
        torch.manual_seed(0)
        conv = TweakedOREPAConv2d(3, 8, 3, padding=1)
        constant = conv.multiplier.clone()
        changed = change(conv)
        tweaked, plain = self.gradients(changed, torch.randn(2, 3, 6, 6))
        assert relative(tweaked, tweak(plain, constant)) < ROUNDING
        assert relative(tweaked, plain) > 0.1

    def test_compiled(self):
        torch.manual_seed(0)
        conv = TweakedOREPAConv2d(3, 8, 3, padding=1)
        x = torch.randn(2, 3, 6, 6)
        expected, _ = self.gradients(conv, x)
        conv.zero_grad()
        torch.compile(conv, backend='aot_eager', fullgraph=True)(x).square().sum().backward()
        torch._dynamo.reset()
        assert relative(conv.weight.grad, expected) < ROUNDING

    @pytest.mark.parametrize('where', ['autocast', 'parameters'])
    def test_bfloat16(self, where):
        torch.manual_seed(0)
        conv = TweakedOREPAConv2d(3, 8, 3, padding=1)
        constant = conv.multiplier.clone()
        x = torch.randn(2, 3, 6, 6)
        if where == 'parameters':
            conv, x = conv.bfloat16(), x.bfloat16()
        with torch.autocast('cpu', torch.bfloat16, enabled=where == 'autocast'):
            tweaked, plain = self.gradients(conv, x)
        assert relative(tweaked, tweak(plain, constant)) < BFLOAT16

    def test_a_frozen_weight_gets_no_gradient(self):
        conv = TweakedOREPAConv2d(3, 8, 3).requires_grad_(False)
        x = torch.randn(1, 3, 5, 5, requires_grad=True)
        conv(x).sum().backward()
        assert conv.weight.grad is None and x.grad is not None

    def test_in_the_place_of_pretrained_convolutions(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        x = torch.randn(2, 3, 6, 6)
        before = net(x)
        reparameterize(net, 'TweakedOREPA', keep_function=True)
        assert type(net[0]) is TweakedOREPAConv2d
        assert torch.equal(net(x), before)

    @pytest.mark.parametrize(
        'arguments, message',
        [
            (dict(kernel_size=2), 'TweakedOREPAConv2d: kernel_size=2 is not odd and square'),
            (dict(kernel_size=3, branches=['origin']), "no branch is named 'origin'"),
            (dict(kernel_size=3, train_scales=2), 'train_scales=2, wanted True or False'),
        ],
        ids=['even', 'branch', 'scales'],
    )
    def test_what_it_cannot_do(self, arguments, message):
        with pytest.raises(UserError, match=message):
            TweakedOREPAConv2d(3, 8, **arguments)


def save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer


def load(buffer):
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_a_branch_without_constants_is_named(monkeypatch):
    class Another(branches.Original):
        """As the original one."""

    monkeypatch.setitem(branches.BRANCHES, 'original', Another)
    with pytest.raises(UserError, match='no constants for the branch Another'):
        TweakedOREPAConv2d(4, 8, 3)
