"""Blocks that are built without memory, and get it later."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convs.cases import CHANNELS, EVERY, KINDS, image, label, new_block
from mmorepa import reparameterize, squeeze, verify
from mmorepa.convs import OREPAConv2d, TweakedOREPAConv2d
from mmorepa.errors import UserError
from support import make_trained_like

#: Larger, so that the spread of initial values says something.
WIDE = (16, 24)
CASES = [*EVERY, ('TweakedOREPA', None)]
GROUPS = [1, 4, 8]


def build(name, mode, channels=CHANNELS, device=None, **options):
    kind, size = KINDS.get(name, (TweakedOREPAConv2d, 3))
    options |= {} if mode is None else dict(mode=mode)
    with torch.device(device or 'cpu'):
        return kind(*channels, size, padding=size // 2, **options)


def on_meta(name, mode, channels=CHANNELS, **options):
    block = build(name, mode, channels, 'meta', **options)
    assert all(t.is_meta for t in (*block.parameters(), *block.buffers()))
    # Not zeros, which could pass for values, but what a used-up memory may hold.
    block.to_empty(device='cpu')
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(float('nan'))
    return block


@pytest.mark.parametrize('case', CASES, ids=label)
@pytest.mark.parametrize('assign', [False, True], ids=['copied', 'assigned'])
def test_loads_what_another_has(case, assign):
    name, mode = case
    block = make_trained_like(build(name, mode)) if name == 'TweakedOREPA' else new_block(*case)
    other = on_meta(*case)
    other.load_state_dict(block.state_dict(), strict=True, assign=assign)
    assert torch.equal(other.weight, block.weight)
    for (key, a), b in zip(other.named_buffers(), block.buffers()):
        assert torch.equal(a, b), key
    assert torch.equal(other.eval()(image()), block.eval()(image()))


@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
class TestPlainWeights:
    """Of a network that was built without memory."""

    @pytest.fixture
    def plain(self):
        torch.manual_seed(0)
        return make_trained_like(nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)))

    @pytest.fixture
    def net(self, plain, block):
        with torch.device('meta'):
            return reparameterize(copy.deepcopy(plain).to('meta'), block)

    @pytest.mark.parametrize('assign', [False, True], ids=['copied', 'assigned'])
    def test_are_refused_without_memory(self, net, plain, assign):
        with pytest.raises(UserError, match="on the meta device, .*to_empty.device='cpu'"):
            net.load_state_dict(plain.state_dict(), assign=assign)

    def test_are_imitated_with_memory(self, net, plain):
        net.to_empty(device='cpu')
        for module in net.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        net.load_state_dict(plain.state_dict())
        image = torch.randn(1, 4, 8, 8)
        assert verify(plain, net, image).within(1e-5)
        assert verify(plain, squeeze(net), image).within(1e-5)


@pytest.mark.parametrize('groups', GROUPS)
@pytest.mark.parametrize('case', CASES, ids=label)
def test_initial_values_are_those_of_a_fresh_block(case, groups):
    torch.manual_seed(0)
    fresh = build(*case, WIDE, groups=groups)
    block = on_meta(*case, WIDE, groups=groups)
    block.reset_parameters()
    parameters = dict(block.named_parameters())
    for key, expected in fresh.named_parameters():
        if 'weight' == key and case[1] == 'squeezed':
            continue  # follows from the others, see below
        value = parameters[key]
        if expected.unique().numel() <= 2:  # a constant, or an identity
            assert torch.equal(value, expected), key
        else:
            assert value.std().item() == pytest.approx(expected.std().item(), rel=0.25), key
            assert value.mean().abs() < 4 * value.std() / value.numel() ** 0.5, key
    for key, expected in fresh.named_buffers():
        assert torch.equal(block.get_buffer(key), expected), key
    assert block.weight.std().item() == pytest.approx(fresh.weight.std().item(), rel=0.25)
    assert block(torch.randn(2, WIDE[0], 9, 9)).isfinite().all()


@pytest.mark.parametrize('case', CASES, ids=label)
def test_runs_without_memory(case):
    """As what counts operations, or plans a network's memory, runs it."""
    block = build(*case, device='meta')
    x = image().to('meta').requires_grad_()
    out = block(x)
    out.sum().backward()
    assert out.shape == build(*case)(image()).shape
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape for p in block.parameters() if p.requires_grad)


@pytest.mark.parametrize('case', CASES, ids=label)
def test_module_by_module(case):
    """As FSDP does: each module that has tensors of its own gets memory, then its own values."""
    block = build(*case, device='meta')
    for module in block.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own:
            module.to_empty(device='cpu', recurse=False)
            with torch.no_grad():
                for parameter in module.parameters(recurse=False):
                    parameter.fill_(float('nan'))
    for module in reversed(list(block.modules())):
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.reset_parameters()
    assert block(image()).isfinite().all()
    assert all(t.isfinite().all() for t in block.parameters())


@pytest.mark.parametrize('case', CASES, ids=label)
def test_loading_with_assign(case):
    """Constants are in no state dict, and leave the meta device with the parameters."""
    wanted, block = build(*case).eval(), build(*case, device='meta').eval()
    block.load_state_dict(wanted.state_dict(), assign=True)
    assert not any(t.is_meta for t in (*block.parameters(), *block.buffers()))
    x = image()
    assert torch.equal(block(x), wanted(x))


@pytest.mark.parametrize('size', [1, 3, 7])
def test_made_on_a_device_and_with_a_dtype(size):
    block = OREPAConv2d(4, 4, size, device='meta', dtype=torch.float64)
    tensors = [*block.parameters(), *block.buffers()]
    assert all(t.is_meta and t.dtype == torch.float64 for t in tensors)


def test_a_network_of_them():
    """Norms and plain convolutions beside the blocks."""
    with torch.device('meta'):
        model = nn.Sequential(
            KINDS['stem'][0](4, 6, 7, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        )
    model.to_empty(device='cpu')
    for module in model:
        module.reset_parameters()
    out = model(torch.randn(2, 4, 16, 16))
    assert out.isfinite().all() and out.std() > 0
    assert any(isinstance(module, _BatchNorm) for module in model)
