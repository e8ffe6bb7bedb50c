"""The fast sum of branches against the formula."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmorepa import OREPAConv2d
from mmorepa.convs.orepa.branches import KXK, POINTWISE
from support import by_the_formula, kernel_and_gradients, make_trained_like

FLOAT64 = 1e-12  # relative, kernels and gradients
FLOAT32 = 1e-5


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def subsets(names):
    names = list(names)
    return [s for n in range(1, len(names) + 1) for s in itertools.combinations(names, n)]


def assert_equal(conv, gradient, tolerance=FLOAT64):
    kernel, gradients = kernel_and_gradients(conv, gradient)
    with by_the_formula():
        expected, expected_gradients = kernel_and_gradients(conv, gradient)
    assert relative(kernel, expected) < tolerance
    names = [name for name, _ in conv.kernel.named_parameters()]
    for name, found, wanted in zip(names, gradients, expected_gradients):
        assert found.shape == wanted.shape, name
        assert relative(found, wanted) < tolerance, name


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3, 5, 8]),
    in_width=st.integers(1, 5),
    out_width=st.integers(1, 5),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_for_every_geometry(groups, in_width, out_width, kernel_size, channels_last, seed):
    torch.manual_seed(seed)
    conv = OREPAConv2d(groups * in_width, groups * out_width, kernel_size, groups=groups)
    make_trained_like(conv, seed).double()
    gradient = torch.randn(conv.squeeze().shape, dtype=torch.float64)
    if channels_last:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    assert_equal(conv, gradient)


@pytest.mark.parametrize(
    'size, names',
    [(3, names) for names in subsets(KXK)] + [(1, names) for names in subsets(POINTWISE)],
    ids=lambda value: value if isinstance(value, int) else '+'.join(value),
)
@pytest.mark.parametrize('scales', [True, False], ids=['scaled', 'unscaled'])
def test_for_every_subset_of_branches(size, names, scales):
    torch.manual_seed(0)
    branches = list(names) if scales else dict.fromkeys(names)
    conv = make_trained_like(OREPAConv2d(6, 8, size, groups=2, branches=branches)).double()
    assert_equal(conv, torch.randn(8, 3, size, size, dtype=torch.float64))


def test_in_parts(monkeypatch):
    """As blocks are gone over that are too large for a cache."""
    monkeypatch.setattr('mmorepa.convs.orepa.fast.CACHED', 100)
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(6, 70, 3, groups=2)).double()
    assert_equal(conv, torch.randn(70, 3, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize('groups', [1, 2])
def test_as_on_other_devices(monkeypatch, groups):
    """Where few large operations are better than many small ones."""
    monkeypatch.setattr('mmorepa.convs.orepa.fast.goes_in_passes', lambda rows: False)
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(6, 8, 3, groups=groups)).double()
    assert_equal(conv, torch.randn(8, 6 // groups, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize('kernel_size', [1, 3, 7])
def test_in_float32(kernel_size):
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(12, 20, kernel_size))
    assert_equal(conv, torch.randn(20, 12, kernel_size, kernel_size), FLOAT32)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_summed_in_float32(dtype):
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(6, 8, 3)).to(dtype)
    kernel, gradients = kernel_and_gradients(conv, torch.randn(8, 6, 3, 3))
    wide = OREPAConv2d(6, 8, 3)
    wide.load_state_dict(conv.state_dict())
    assert kernel.dtype == torch.float32
    # The prior's filters are constants of the module, rounded with it.
    assert relative(kernel, wide.squeeze()) < 1e-2
    assert {gradient.dtype for gradient in gradients} == {dtype}


def test_under_autocast():
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(6, 8, 3))
    expected, wanted = kernel_and_gradients(conv, torch.ones(8, 6, 3, 3))
    with torch.autocast('cpu', torch.bfloat16):
        kernel, gradients = kernel_and_gradients(conv, torch.ones(8, 6, 3, 3))
    assert torch.equal(kernel, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted))


def test_frozen_parameters_get_no_gradient():
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(6, 8, 3))
    conv.kernel.separable.requires_grad_(False)
    conv.kernel.average.scale.requires_grad_(False)
    conv.squeeze().square().sum().backward()
    for name, parameter in conv.kernel.named_parameters():
        is_frozen = name.startswith('separable') or name == 'average.scale'
        assert (parameter.grad is None) == is_frozen, name


@pytest.mark.parametrize('kernel_size, groups', [(1, 1), (1, 2), (3, 1), (3, 5)])
def test_numerical_gradients(kernel_size, groups):
    torch.manual_seed(0)
    conv = OREPAConv2d(groups, 2 * groups, kernel_size, groups=groups, bias=False)
    make_trained_like(conv).double()
    names = [name for name, _ in conv.kernel.named_parameters()]

    def kernel(*values):
        return torch.func.functional_call(conv.kernel, dict(zip(names, values)), ())

    values = [p.detach().requires_grad_() for p in conv.kernel.parameters()]
    assert torch.autograd.gradcheck(kernel, values)
    assert torch.autograd.gradgradcheck(kernel, values, fast_mode=True)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_any_memory_format_of_the_parameters_will_do(memory_format):
    torch.manual_seed(0)
    conv = make_trained_like(OREPAConv2d(6, 8, 3))
    gradient = torch.randn(8, 6, 3, 3)
    expected, wanted = kernel_and_gradients(conv, gradient)
    conv.to(memory_format=memory_format)
    kernel, gradients = kernel_and_gradients(conv, gradient)
    assert torch.equal(kernel, expected)
    for a, b in zip(gradients, wanted):
        torch.testing.assert_close(a, b)


def test_keeps_nothing_but_parameters_for_the_backward_pass():
    conv = OREPAConv2d(6, 8, 3)
    own = {t.data_ptr() for t in [*conv.kernel.parameters(), *conv.kernel.buffers()]}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        conv.squeeze()
    assert kept
    assert {tensor.data_ptr() for tensor in kept} <= own


def test_gradients_lie_in_memory_as_their_parameters_do():
    """So that an optimizer's step is one pass over both."""
    conv = OREPAConv2d(6, 8, 3)
    conv.squeeze().sum().backward()
    for name, parameter in conv.kernel.named_parameters():
        strides = zip(parameter.shape, parameter.stride(), parameter.grad.stride())
        # Of a dimension of one the stride says nothing.
        assert all(a == b for length, a, b in strides if length > 1), name
