"""The kernel kept in eval mode: kept while it may be, never stale."""

import copy
import pickle

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import nn

from mmorepa.convs import OREPAConv2d


@pytest.fixture(params=[1, 3, 7], ids=['pointwise', 'kxk', 'stem'])
def conv(request):
    torch.manual_seed(0)
    return OREPAConv2d(3, 4, request.param, bias=False).eval()


def expected_kernel(conv: OREPAConv2d) -> torch.Tensor:
    """The kernel of the parameters as they are, by a block that never kept one."""
    fresh = OREPAConv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False).to(
        conv.weight.dtype
    )
    with torch.no_grad():
        for target, source in zip(fresh.kernel.parameters(), conv.kernel.parameters()):
            target.copy_(source)
        return fresh.squeeze()


def first(conv: OREPAConv2d) -> nn.Parameter:
    return next(conv.kernel.parameters())


def owner(conv: OREPAConv2d) -> tuple[nn.Module, str]:
    name = next(name for name, _ in conv.kernel.named_parameters())
    module, _, attribute = name.rpartition('.')
    return conv.kernel.get_submodule(module), attribute


def in_place(conv):
    with torch.no_grad():
        first(conv).add_(1)


def in_place_under_inference_mode(conv):
    with torch.inference_mode():
        first(conv).add_(1)


def optimizer_step(conv, **options):
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, **options)
    for parameter in conv.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def foreach_step(conv):
    optimizer_step(conv, foreach=True)


def fused_step(conv):
    optimizer_step(conv, fused=True)


def new_data(conv):
    first(conv).data = first(conv).data + 1


def new_data_at_the_old_address(conv):
    parameter = first(conv)
    shape, address = parameter.shape, parameter.data_ptr()
    parameter.data = torch.zeros(1)
    # The freed storage is what an allocator likes to hand out next.
    held = []
    for _ in range(64):
        candidate = torch.full(shape, 2.0)
        held.append(candidate)
        if candidate.data_ptr() == address:
            break
    parameter.data = held[-1]


def load_state(conv, **options):
    state = {key: value + 1 for key, value in conv.state_dict().items()}
    conv.load_state_dict(state, **options)


def load_state_by_assignment(conv):
    load_state(conv, assign=True)


def new_parameter(conv):
    module, attribute = owner(conv)
    setattr(module, attribute, nn.Parameter(first(conv).detach() + 1))


def write_through_data_then_eval(conv):
    first(conv).data.copy_(first(conv).data + 1)
    conv.eval()


def write_through_data_then_train_and_eval(conv):
    first(conv).data.copy_(first(conv).data + 1)
    nn.Sequential(conv).train().eval()


def to_double(conv):
    conv.double()


def to_half_and_back(conv):
    conv.bfloat16().float()


def through_a_flat_view(conv):
    with torch.no_grad():
        nn.utils.vector_to_parameters(
            nn.utils.parameters_to_vector(conv.parameters()) + 1, conv.parameters()
        )


CHANGES = [
    in_place,
    in_place_under_inference_mode,
    optimizer_step,
    foreach_step,
    fused_step,
    new_data,
    new_data_at_the_old_address,
    load_state,
    load_state_by_assignment,
    new_parameter,
    write_through_data_then_eval,
    write_through_data_then_train_and_eval,
    to_double,
    to_half_and_back,
    through_a_flat_view,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
def test_no_stale_kernel(conv, change):
    with torch.no_grad():
        before = conv.weight.clone()
    change(conv)
    with torch.no_grad():
        after = conv.weight
        torch.testing.assert_close(after, expected_kernel(conv).to(after.dtype), rtol=0, atol=0)
        assert after.dtype != before.dtype or not torch.equal(after, before)


def test_no_stale_kernel_in_a_copy(conv):
    with torch.no_grad():
        before = conv.weight
        for clone in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            in_place(clone)
            assert not torch.equal(clone.weight, before)
            assert torch.equal(clone.weight, expected_kernel(clone))
            assert torch.equal(conv.weight, before)


def test_no_stale_kernel_in_a_functional_call(conv):
    with torch.no_grad():
        before = conv.weight
        other = {name: value + 1 for name, value in conv.named_parameters()}
        x = torch.randn(1, 3, 9, 9)
        called = torch.func.functional_call(conv, other, (x,))
        assert not torch.equal(called, conv(x))
        assert torch.equal(conv.weight, before)
        in_place_clone = copy.deepcopy(conv)
        in_place_clone.load_state_dict(other)
        assert torch.equal(called, in_place_clone(x))


def test_no_stale_kernel_after_the_ema_swap(conv):
    """MMEngine's EMAHook writes through ``.data``, then evaluates, then swaps back."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

    class Runner:
        model = Net()

    hook = EMAHook(momentum=0.5)
    hook.enabled_by_epoch = False
    Runner.model.eval()
    hook.before_run(Runner)
    own = expected_kernel(conv)
    with torch.no_grad():
        assert torch.equal(conv.weight, own)
        for parameter in hook.ema_model.module.parameters():
            parameter.data.add_(1)
        hook._swap_ema_parameters()
        Runner.model.eval()
        swapped = conv.weight
        assert not torch.equal(swapped, own)
        assert torch.equal(swapped, expected_kernel(conv))
        hook._swap_ema_parameters()
        Runner.model.train()
        Runner.model.eval()
        assert torch.equal(conv.weight, own)


def test_kept_in_eval_mode(conv):
    with torch.no_grad():
        assert conv.weight is conv.weight
    with torch.inference_mode():
        assert conv.weight is conv.weight


def test_kept_kernel_can_take_part_in_a_backward_pass(conv):
    conv.requires_grad_(False)
    with torch.inference_mode():
        conv(torch.randn(1, 3, 9, 9))
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_not_kept_where_a_graph_is_wanted(conv):
    with torch.no_grad():
        conv.weight  # noqa: B018  (keeps the kernel)
    for _ in range(2):
        conv.zero_grad()
        conv(torch.randn(1, 3, 9, 9)).sum().backward()
        assert all(parameter.grad is not None for parameter in conv.parameters())


def test_not_kept_while_training(conv):
    conv.train()
    with torch.no_grad():
        assert conv.weight is not conv.weight


def test_kept_while_training_if_frozen(conv):
    conv.requires_grad_(False).train()
    kept = conv.weight
    assert conv.weight is kept
    conv.requires_grad_(True)
    assert conv.weight is not kept
    assert conv.weight.requires_grad


def test_parameters_made_under_inference_mode_are_never_kept():
    with torch.inference_mode():
        conv = OREPAConv2d(2, 2, 3).eval()
        before = conv.weight.clone()
        first(conv).add_(1)
        assert not torch.equal(conv.weight, before)


def test_kept_kernel_is_not_in_the_state_dict(conv):
    keys = list(conv.state_dict())
    with torch.no_grad():
        conv.weight  # noqa: B018
    assert list(conv.state_dict()) == keys
