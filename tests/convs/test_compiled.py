"""The option ``compile``: the same kernels and gradients, also where nothing can be compiled."""

import copy
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn

import mmorepa
from mmorepa import OREPAConv2d, switch_to_deploy
from mmorepa.convs import compiled
from mmorepa.convs.fused import by_reference
from support import kernel_and_gradients, make_trained_like

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative, kernels and gradients

#: Not more than are needed: each takes some seconds to compile.
GEOMETRIES = {
    'whole vectors': dict(in_channels=32, out_channels=48),
    'ragged': dict(in_channels=7, out_channels=5),
    'groups': dict(in_channels=40, out_channels=24, groups=8),
    '5x5, double precision': dict(in_channels=6, out_channels=8, kernel_size=5),
    'stem': dict(in_channels=3, out_channels=16, kernel_size=7),
    'some branches, unscaled': dict(
        in_channels=6, out_channels=8, branches=dict(average=None, prior=0.5)
    ),
}


def make(geometry: str) -> OREPAConv2d:
    torch.manual_seed(0)
    conv = OREPAConv2d(**dict(dict(kernel_size=3), **GEOMETRIES[geometry]), compile=True)
    return make_trained_like(conv).to(torch.float64 if 'double' in geometry else torch.float32)


def assert_equal(conv, gradient):
    with by_reference():
        expected, wanted = kernel_and_gradients(conv, gradient.clone())
    # Again and again: a write out of bounds shows late.
    for _ in range(3):
        kernel, gradients = kernel_and_gradients(conv, gradient.clone())
    tolerance = TOLERANCE[kernel.dtype]
    torch.testing.assert_close(kernel, expected, rtol=0, atol=tolerance * expected.abs().max())
    for (name, _), a, b in zip(conv.kernel.named_parameters(), gradients, wanted):
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= tolerance * b.abs().max(), name


@pytest.fixture
def functions(monkeypatch):
    """What is compiled meanwhile."""
    found = {}
    monkeypatch.setattr(compiled, '_functions', found)
    monkeypatch.setattr(compiled, '_is_available', True)
    return found


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_kernels_and_gradients(functions, geometry):
    conv = make(geometry)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert_equal(conv, torch.randn_like(conv.squeeze()).contiguous())
        last = torch.randn_like(conv.squeeze()).contiguous(memory_format=torch.channels_last)
        assert_equal(conv, last)
    layers = 2 if geometry == 'stem' else 1
    # Both directions of each geometry.
    assert len(functions) == 2 * layers


def test_blocks_of_one_geometry_share_what_was_compiled(functions):
    first, second = make('ragged'), make_trained_like(OREPAConv2d(7, 5, 3, compile=True), seed=1)
    gradient = torch.randn(5, 7, 3, 3)
    for conv in first, second:
        assert_equal(conv, gradient)
    assert len(functions) == 2


@pytest.mark.parametrize('mode', ['1x1', 'evaluation', 'left out'])
def test_nothing_is_compiled(functions, mode):
    conv = OREPAConv2d(6, 8, 1 if mode == '1x1' else 3, compile=mode != 'left out')
    if mode == 'evaluation':
        conv.eval()
    conv.squeeze().sum().backward()
    assert not functions


def test_a_compiled_block_is_copied_saved_and_converted_like_any_other(functions):
    conv = make('ragged')
    x = torch.randn(2, 7, 8, 8)
    expected = conv(x)
    expected.sum().backward()
    for other in copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)):
        torch.testing.assert_close(other(x), expected)
    plain = OREPAConv2d(7, 5, 3)
    plain.load_state_dict(conv.state_dict())
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
    deployed = switch_to_deploy(conv, inplace=False)
    torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-5)


def test_under_autocast(functions):
    conv = make('ragged')
    expected = conv.squeeze()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(conv.squeeze(), expected)
        conv(torch.randn(2, 7, 8, 8)).float().sum().backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())


@pytest.mark.parametrize('flushes', [False, True])
def test_numbers_below_the_normal_range(functions, flushes):
    """Loading what inductor compiled would change what is done with them, everywhere."""
    torch.set_flush_denormal(flushes)
    try:
        torch.compiler.reset()
        make('ragged').squeeze().sum().backward()
        assert len(functions) == 2
        assert (sys.float_info.min / 2 == 0) == flushes
    finally:
        torch.set_flush_denormal(False)


def test_without_a_compiler(functions, monkeypatch, tmp_path):
    """One warning, then as without the option."""
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    conv = make('ragged')
    missing = {'cpp.cxx': (str(tmp_path / 'no-such-compiler'),), 'fx_graph_cache': False}
    with torch._inductor.config.patch(missing):
        torch.compiler.reset()
        with pytest.warns(UserWarning, match='torch cannot compile here .*Compiler'):
            conv.squeeze()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert_equal(conv, torch.randn(5, 7, 3, 3))


def test_no_room_is_not_taken_for_no_compiler(functions, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError('no room')

    monkeypatch.setattr(compiled, '_compiled', fail)
    with pytest.raises(torch.OutOfMemoryError):
        make('ragged').squeeze()
    assert compiled._is_available


def test_an_error_of_ours_is_raised(functions):
    conv = make('ragged')
    conv.kernel.average.weight = torch.nn.Parameter(torch.zeros(4, 7, 1, 1))
    with pytest.raises(RuntimeError, match='size'):
        conv.squeeze()
    assert compiled._is_available


def test_training_a_network(functions):
    """Three steps, of which the weights are those without the option."""

    def train(**options):
        torch.manual_seed(0)
        layers = [layer for _ in range(2) for layer in (nn.Conv2d(7, 7, 3, padding=1), nn.ReLU())]
        model = mmorepa.reparameterize(nn.Sequential(*layers), dict(type='OREPA', **options))
        make_trained_like(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x = torch.randn(2, 7, 8, 8, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    expected = train()
    assert not functions
    found = train(compile=True)
    assert len(functions) == 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
