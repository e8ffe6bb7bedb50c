import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa.convs import (
    ACNetConv2d,
    DBBConv2d,
    ExpandConv2d,
    MobileOneConv2d,
    OREPAConv2d,
    OREPARepVGGConv2d,
    RepVGGConv2d,
    TweakedOREPAConv2d,
)
from mmorepa.convs.blocks.kernel_penalty import (
    decays_as_a_kernel,
    kernel_parameters,
    kernel_penalty,
)
from support import by_the_formula, make_trained_like

EXACT = 1e-10  # relative, float64


def trained(block):
    torch.manual_seed(0)
    return make_trained_like(nn.Sequential(block)).double()[0]


def gain(norm):
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None, None]


def repvgg(block):
    """RepVGG's custom L2 as its authors state it: a circle of eight taps, and the centre."""
    dense, pointwise = block.original.kernel(), block.pointwise.weight
    t3, t1 = gain(block.original.norm), gain(block.pointwise.norm)
    centre = dense[:, :, 1:2, 1:2]
    circle = dense.square().sum() - centre.square().sum()
    return circle + ((centre * t3 + pointwise * t1).square() / (t3**2 + t1**2)).sum()


def dbb(block):
    average, nested = block.average, block.pointwise_kxk
    first = nested.pointwise()[:, :, 0, 0] * gain(nested.inner_norm)[:, :, 0, 0]
    parts = [
        (block.original.norm, block.original.weight),
        (block.pointwise.norm, block.pointwise.weight * in_the_middle()),
        (average.norm, average.weight * gain(average.inner_norm) / 9 * torch.ones(3, 3)),
        (nested.norm, torch.einsum('othw,ti->oihw', nested.weight, first)),
    ]
    kernel = sum(gain(norm) * part for norm, part in parts)
    squares = [gain(norm) ** 2 for norm, _ in parts]
    reach = sum(squares) - squares[1] * (1 - in_the_middle())
    return (kernel.square() / reach).sum()


def acnet(block):
    kernel = reach = 0
    for branch in block.children():
        rows = slice(None) if branch.size[0] == 3 else slice(1, 2)
        columns = slice(None) if branch.size[1] == 3 else slice(1, 2)
        part, taps = torch.zeros(8, 4, 3, 3).double(), torch.zeros(8, 1, 3, 3).double()
        part[:, :, rows, columns] = branch.weight
        taps[:, :, rows, columns] = 1
        kernel = kernel + gain(branch.norm) * part
        reach = reach + gain(branch.norm) ** 2 * taps
    return (kernel.square() / reach).sum()


def in_the_middle():
    return torch.eye(9)[4].view(3, 3)


def generated(block):
    return block.squeeze().square().sum()


def merged(block):
    return block.merged()[0].square().sum()


def its_weight(block):
    return block.original0.weight.square().sum()


CASES = [
    (OREPAConv2d(4, 8, 3), generated),
    (OREPAConv2d(4, 8, 1), generated),
    (OREPAConv2d(4, 8, 5, groups=2, bias=False), generated),
    (OREPAConv2d(2, 4, 7), generated),
    (ExpandConv2d(4, 8, 3, rate=2), generated),
    (RepVGGConv2d(4, 8, 3, padding=1), repvgg),
    (RepVGGConv2d(8, 8, 3, padding=1), repvgg),
    (RepVGGConv2d(8, 8, 3, padding=1, groups=2), repvgg),
    (OREPARepVGGConv2d(8, 8, 3, padding=1), repvgg),
    (DBBConv2d(4, 8, 3, padding=1), dbb),
    (ACNetConv2d(4, 8, 3, padding=1), acnet),
    (MobileOneConv2d(4, 8, 1, copies=1), its_weight),
    (RepVGGConv2d(8, 8, 3, padding=1, norm=None), merged),
    (DBBConv2d(4, 8, 3, padding=1, norm=None), merged),
]
IDS = [f'{type(block).__name__}-{i}' for i, (block, _) in enumerate(CASES)]


@pytest.mark.parametrize('block, formula', CASES, ids=IDS)
def test_value_and_gradient_are_those_of_the_formula(block, formula):
    block = trained(block)
    parameters = kernel_parameters(block)
    found = kernel_penalty(block)
    gradients = torch.autograd.grad(found, parameters, retain_graph=True)
    with by_the_formula():
        expected = formula(block)
        wanted = torch.autograd.grad(expected, parameters)
    assert found.item() == pytest.approx(expected.item(), rel=EXACT)
    for gradient, plain in zip(gradients, wanted):
        assert (gradient - plain).norm() <= EXACT * plain.norm().clamp_min(1)
        assert plain.any()
    # All other parameters are constants to it.
    own = {id(parameter) for parameter in parameters}
    others = [parameter for parameter in block.parameters() if id(parameter) not in own]
    if others:
        rest = torch.autograd.grad(found, others, allow_unused=True)
        assert all(gradient is None for gradient in rest)


@pytest.mark.parametrize('block, formula', CASES, ids=IDS)
def test_the_kernel_is_made_of_everything_but_norms_and_bias(block, formula):
    assert decays_as_a_kernel(block)
    norms = {name for name, part in block.named_modules() if isinstance(part, _BatchNorm)}
    expected = {
        name
        for name, _ in block.named_parameters()
        if name != 'bias' and name.rpartition('.')[0] not in norms
    }
    names = {id(parameter): name for name, parameter in block.named_parameters()}
    assert {names[id(parameter)] for parameter in kernel_parameters(block)} == expected


@pytest.mark.parametrize('module', [nn.Conv2d(4, 8, 3), TweakedOREPAConv2d(4, 8, 3)], ids=type)
def test_a_kernel_that_is_a_parameter_decays_as_it_is(module):
    assert not decays_as_a_kernel(module)


def test_gains_of_zero():
    """As the last BatchNorm of a residual block may start."""
    block = RepVGGConv2d(4, 8, 3, padding=1)
    for branch in block.children():
        nn.init.zeros_(branch.norm.weight)
    penalty = kernel_penalty(block)
    assert penalty.item() == 0
    gradients = torch.autograd.grad(penalty, kernel_parameters(block))
    assert not any(gradient.any() for gradient in gradients)


def test_half_precision_parameters():
    torch.manual_seed(0)
    block = OREPAConv2d(4, 8, 3)
    expected = kernel_penalty(block).item()
    found = kernel_penalty(block.bfloat16())
    assert found.item() == pytest.approx(expected, rel=0.02)
    assert torch.autograd.grad(found, kernel_parameters(block))[0].dtype == torch.bfloat16
