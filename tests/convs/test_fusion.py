"""Tools that fold a BatchNorm into the convolution in front of it."""

import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.cnn.bricks import conv_module
from mmengine.model.efficient_conv_bn_eval import (
    efficient_conv_bn_eval_forward,
    turn_on_efficient_conv_bn_eval_for_single_model,
)
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convs.cases import NORMED, label
from mmorepa import reparameterize
from mmorepa.convs import ReparamConv2d, TweakedOREPAConv2d
from mmorepa.errors import UserError
from support import make_trained_like

RELATIVE = 1e-4  # outputs of two forms, float32

CASES = [('OREPA', 'online'), ('OREPA', 'squeezed'), ('OREPA', 'offline')]
CASES += [('ExpandNet', 'online'), ('ExpandNet', 'squeezed'), ('TweakedOREPA',)]
CASES += [(name,) for name in NORMED]
GENERATED = [case for case in CASES if case[0] not in (*NORMED, 'TweakedOREPA')]
CONTROLS = [conv_module.efficient_conv_bn_eval_forward, efficient_conv_bn_eval_forward]
every = pytest.mark.parametrize('case', CASES, ids=label)


class Conv(nn.Module):
    """Convolution, BatchNorm, activation, as in YOLOs; without the norm once that is folded."""

    def __init__(self, in_channels, out_channels, size, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x):
        x = self.conv(x)
        return torch.nn.functional.silu(self.bn(x) if hasattr(self, 'bn') else x)


def network(case, bias=False):
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 8, 3, bias), Conv(8, 8, 3, bias), Conv(8, 6, 1, bias))
    block = dict(type=case[0])
    if len(case) > 1:
        block['mode'] = case[1]
    reparameterize(model, block)
    assert any(isinstance(module, ReparamConv2d) for module in model.modules())
    make_trained_like(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return model.eval()


def image():
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def assert_same(found, expected):
    assert (found - expected).abs().max() < RELATIVE * expected.abs().max()


def fuse_in_place(conv, bn):
    """What ultralytics does today: it writes to the weight of the convolution itself."""
    w_conv = conv.weight.view(conv.out_channels, -1)
    w_bn = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    conv.weight.data = torch.mm(w_bn, w_conv).view(conv.weight.shape)
    if conv.bias is None:
        b_conv = torch.zeros(conv.out_channels, device=conv.weight.device)
    else:
        b_conv = conv.bias
    b_bn = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    fused_bias = torch.mm(w_bn, b_conv.reshape(-1, 1)).reshape(-1) + b_bn
    if conv.bias is None:
        conv.register_parameter('bias', nn.Parameter(fused_bias))
    else:
        conv.bias.data = fused_bias
    return conv.requires_grad_(False)


def fuse_anew(conv, bn):
    """What it did before, and YOLOv5 does: a convolution of its own."""
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=True,
    )
    fused = fused.requires_grad_(False).to(conv.weight.device)
    w_conv = conv.weight.clone().view(conv.out_channels, -1)
    w_bn = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    fused.weight.copy_(torch.mm(w_bn, w_conv).view(fused.weight.shape))
    if conv.bias is None:
        b_conv = torch.zeros(conv.weight.shape[0], device=conv.weight.device)
    else:
        b_conv = conv.bias
    b_bn = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    fused.bias.copy_(torch.mm(w_bn, b_conv.reshape(-1, 1)).reshape(-1) + b_bn)
    return fused


def fuse(model, fuse_one):
    """As ultralytics' ``model.fuse()`` goes over a model."""
    for module in model.modules():
        if isinstance(module, Conv) and hasattr(module, 'bn'):
            module.conv = fuse_one(module.conv, module.bn)
            delattr(module, 'bn')
    return model


@every
@pytest.mark.parametrize('bias', [False, True], ids=['no bias', 'bias'])
@pytest.mark.parametrize('fuse_one', [fuse_in_place, fuse_anew], ids=lambda f: f.__name__)
@pytest.mark.parametrize('with_grad', [False, True], ids=['no_grad', 'grad'])
@pytest.mark.parametrize('evaluated', [False, True], ids=['fresh', 'evaluated'])
def test_ultralytics(case, bias, fuse_one, with_grad, evaluated):
    model = network(case, bias)
    with torch.no_grad():
        expected = copy.deepcopy(model)(image())
        if evaluated:
            model(image().contiguous(memory_format=torch.channels_last))
    with torch.set_grad_enabled(with_grad):
        fuse(model, fuse_one)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(image()), expected)
    # The weight of a tweaked one is a parameter, as in any nn.Conv2d.
    kept = TweakedOREPAConv2d if case[0] == 'TweakedOREPA' else nn.Conv2d
    assert all(type(module.conv) in (nn.Conv2d, kept) for module in model)
    if fuse_one is fuse_in_place:
        assert not any(p.requires_grad for p in model.parameters())
        keys = {f'{i}.conv.{name}' for i in range(3) for name in ('weight', 'bias')}
        assert set(model.state_dict()) == keys


@every
def test_ultralytics_in_training_is_refused(case):
    """Rather than a network that trains with folded norms."""
    if case[0] == 'TweakedOREPA':
        return  # its weight is a parameter of its own
    with pytest.raises(UserError, match=r'mmorepa\.squeeze\(model\)'):
        fuse(network(case).train(), fuse_in_place)


@every
@pytest.mark.parametrize('bias', [False, True], ids=['no bias', 'bias'])
def test_torch(case, bias):
    model = network(case, bias)
    expected = model(image()).detach()
    for module in model:
        if isinstance(module.bn, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(module.conv, module.bn)
            assert type(fused) in (nn.Conv2d, TweakedOREPAConv2d) and fused is not module.conv
            assert fused.weight.requires_grad
            module.conv, module.bn = fused, nn.Identity()
    assert_same(model(image()), expected)


@every
@pytest.mark.parametrize('bias', [False, True], ids=['no bias', 'bias'])
def test_mmcv(case, bias):
    model = network(case, bias)
    expected = model(image()).detach()
    fused = fuse_conv_bn(model)
    assert_same(fused(image()), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules() if type(m) is Conv)
    if case in GENERATED:
        assert all(type(module.conv) is nn.Conv2d for module in fused)


@pytest.mark.parametrize('case', GENERATED, ids=label)
@pytest.mark.parametrize('control', CONTROLS, ids=['mmcv', 'MMEngine'])
@pytest.mark.parametrize('with_grad', [False, True], ids=['no_grad', 'grad'])
def test_efficient_evaluation(case, control, with_grad):
    """It multiplies the weight that it reads in each pass, and hands it to ``_conv_forward``."""
    model = network(case)
    other = copy.deepcopy(model)
    for one, expected in zip(model, other):
        x = torch.randn(2, one.conv.in_channels, 12, 12)
        with torch.set_grad_enabled(with_grad):
            found, wanted = control(one.bn, one.conv, x), expected.bn(expected.conv(x))
        assert_same(found, wanted)
        if with_grad:
            found.square().mean().backward()
            wanted.square().mean().backward()
    trained = [p for p in other.parameters() if p.grad is not None]
    assert bool(trained) == with_grad
    for (name, found), wanted in zip(model.named_parameters(), other.parameters()):
        assert (found.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None and wanted.grad.any():
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-4)


@every
def test_efficient_evaluation_of_a_network(case):
    """MMEngine traces the network to find the pairs."""
    model = nn.Sequential(*[layer for one in network(case) for layer in (one.conv, one.bn)])
    expected = copy.deepcopy(model)
    turn_on_efficient_conv_bn_eval_for_single_model(model)
    assert_same(model(image()), expected(image()))
    with torch.no_grad():
        for net in (model, expected):
            for parameter in net.parameters():
                parameter.mul_(0.9)
    assert_same(model(image()), expected(image()))
