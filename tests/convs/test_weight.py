"""The weight of a block: held while it may be, never stale, never written to in silence."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import initialize
from torch import nn

from convs.cases import (
    CHANNELS,
    EVERY,
    GENERATED,
    KINDS,
    NORMED,
    image,
    label,
    new_block,
    plain,
)
from mmorepa import squeeze
from mmorepa.convs import OREPAConv2d
from mmorepa.errors import UserError


@pytest.fixture(params=[1, 3, 7], ids=['pointwise', 'kxk', 'stem'])
def conv(request):
    torch.manual_seed(0)
    return OREPAConv2d(3, 4, request.param, bias=False).eval()


def expected_kernel(conv: OREPAConv2d) -> torch.Tensor:
    """The kernel of the parameters as they are, by a block that never held one."""
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


def test_held_in_eval_mode(conv):
    with torch.no_grad():
        assert conv.weight is conv.weight
    with torch.inference_mode():
        assert conv.weight is conv.weight


def test_held_kernel_can_take_part_in_a_backward_pass(conv):
    conv.requires_grad_(False)
    with torch.inference_mode():
        conv(torch.randn(1, 3, 9, 9))
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_not_held_where_a_graph_is_wanted(conv):
    with torch.no_grad():
        conv.weight  # noqa: B018  (the kernel is held)
    for _ in range(2):
        conv.zero_grad()
        conv(torch.randn(1, 3, 9, 9)).sum().backward()
        assert all(parameter.grad is not None for parameter in conv.parameters())


def test_not_held_while_training(conv):
    conv.train()
    with torch.no_grad():
        assert conv.weight is not conv.weight


def test_held_in_eval_mode_alone(conv):
    """A frozen block in training mode may be a key encoder, which is written to by ``.data``."""
    conv.requires_grad_(False).train()
    before = conv.weight.clone()
    first(conv).data.add_(1)
    assert not torch.equal(conv.weight, before)
    conv.eval()
    held = conv.weight
    assert conv.weight is held
    conv.requires_grad_(True)
    assert conv.weight is not held
    assert conv.weight.requires_grad


def test_parameters_made_under_inference_mode_are_never_held():
    with torch.inference_mode():
        conv = OREPAConv2d(2, 2, 3).eval()
        before = conv.weight.clone()
        first(conv).add_(1)
        assert not torch.equal(conv.weight, before)


def test_held_kernel_is_not_in_the_state_dict(conv):
    keys = list(conv.state_dict())
    with torch.no_grad():
        conv.weight  # noqa: B018
    assert list(conv.state_dict()) == keys


def zero(weight):
    with torch.no_grad():
        weight.zero_()


def constant(weight):
    nn.init.constant_(weight, 0.5)


def new_weight_data(block, value):
    block.weight.data = value


def new_weight(block, value):
    block.weight = nn.Parameter(value)


def forward(block):
    block(image())


def read(block):
    return block.weight


def save(block):
    block.state_dict()


def change_mode(block):
    block.train()


def move(block):
    block.double()


USES = [forward, read, save, change_mode, move, copy.deepcopy, pickle.dumps, squeeze]


class TestWrites:
    """To what follows from the branches: they count, or are refused in one line."""

    @pytest.mark.parametrize('case', EVERY, ids=label)
    @pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
    @pytest.mark.parametrize('write', [zero, constant], ids=['zero_', 'constant_'])
    def test_in_place_is_refused_at_the_next_use(self, case, training, write):
        block = new_block(*case).train(training)
        write(block.weight)
        with pytest.raises(UserError, match=r'mmorepa\.squeeze\(model\)') as info:
            block(image())
        assert '\n' not in str(info.value)
        assert type(block) is not nn.Conv2d

    @pytest.mark.parametrize('case', [('kxk', 'online'), ('kxk', 'squeezed'), ('DBB',)], ids=label)
    @pytest.mark.parametrize('use', USES, ids=lambda use: use.__name__)
    def test_every_use_refuses(self, case, use):
        block = new_block(*case).eval()
        zero(block.weight)
        with pytest.raises(UserError, match='was written to'):
            use(block)

    def test_a_write_under_autograd_is_refused(self):
        block = new_block('kxk', 'online')
        block.weight.mul_(2)
        with pytest.raises(UserError, match='was written to'):
            block(image())

    @pytest.mark.parametrize('case', EVERY, ids=label)
    @pytest.mark.parametrize('grad', [True, False], ids=['grad', 'no_grad'])
    @pytest.mark.parametrize('assign', [new_weight_data, new_weight], ids=lambda f: f.__name__)
    def test_assigned_in_eval_mode_counts(self, case, grad, assign):
        block = new_block(*case).eval()
        expected = plain(block)
        value = torch.randn_like(expected.weight)
        with torch.set_grad_enabled(grad):
            block(image())
            assign(block, value)
            expected.weight.data = value
            assert torch.equal(block.weight, value)
            torch.testing.assert_close(block(image()), expected(image()))
        assert type(block) is nn.Conv2d
        assert isinstance(block.weight, nn.Parameter)
        assert set(block.state_dict()) == {'weight', 'bias'}

    @pytest.mark.parametrize('case', EVERY, ids=label)
    def test_used_at_once_after_the_assignment(self, case):
        """Where nobody reads the weight before the forward pass."""
        block = new_block(*case).eval()
        expected = plain(block)
        expected.weight.data = torch.randn_like(expected.weight)
        new_weight_data(block, expected.weight.detach().clone())
        torch.testing.assert_close(block(image()), expected(image()))

    @pytest.mark.parametrize('name', NORMED)
    def test_assigned_bias_counts(self, name):
        block = new_block(name).eval()
        expected = plain(block)
        expected.bias = nn.Parameter(torch.randn_like(expected.bias))
        block.bias = nn.Parameter(expected.bias.detach().clone())
        assert type(block) is nn.Conv2d
        torch.testing.assert_close(block(image()), expected(image()))

    @pytest.mark.parametrize('case', EVERY, ids=label)
    @pytest.mark.parametrize('assign', [new_weight_data, new_weight], ids=lambda f: f.__name__)
    def test_assigned_in_training_is_refused(self, case, assign):
        block = new_block(*case)
        value = torch.randn(block.out_channels, block.in_channels, *block.kernel_size)
        with pytest.raises(UserError, match=r'mmorepa\.squeeze\(model\)') as info:
            assign(block, value)
            block(image())
        assert '\n' not in str(info.value)
        assert type(block) is not nn.Conv2d

    @pytest.mark.parametrize('case', EVERY, ids=label)
    def test_plain_tensor_is_no_weight(self, case):
        """As ``nn.Conv2d`` has it."""
        block = new_block(*case).eval()
        with pytest.raises((TypeError, AttributeError, UserError)):
            block.weight = torch.zeros(1)

    @pytest.mark.parametrize('case', EVERY, ids=label)
    def test_after_squeezing_a_write_is_a_write(self, case):
        block = squeeze(new_block(*case))
        with torch.no_grad():
            block.weight.zero_()
        assert block.weight.abs().max() == 0
        out = block(image())
        assert torch.equal(out, block.bias.reshape(-1, 1, 1).expand_as(out))
        # Nothing of ours is left, so that a pickle of it can be read without this package.
        assert block.__dict__.keys() == plain_attributes()
        assert not block._load_state_dict_post_hooks


def plain_attributes():
    return nn.Conv2d(1, 1, 1).__dict__.keys()


NOT_ALIKE = ('_parameters', '_buffers', '_modules', '_load_state_dict_post_hooks', 'training')


@pytest.mark.parametrize('case', EVERY, ids=label)
class TestFace:
    """What it shows to whoever takes it for an ``nn.Conv2d``."""

    def test_is_a_convolution_whose_weight_is_not_saved(self, case):
        block = new_block(*case)
        assert isinstance(block, nn.Conv2d)
        assert 'weight' not in block.state_dict()
        assert ('weight' in dict(block.named_parameters())) == (case[1] == 'squeezed')

    def test_weight_is_a_tensor_with_the_present_kernel(self, case):
        for block in (new_block(*case), new_block(*case).eval()):
            kernel, bias = block.merged()
            assert isinstance(block.weight, torch.Tensor)
            assert block.weight.is_contiguous()
            torch.testing.assert_close(block.weight, kernel.to(block.weight.dtype))
            torch.testing.assert_close(block.bias, bias.to(block.weight.dtype))

    def test_has_what_a_convolution_has(self, case):
        """Attributes of ``nn.Conv2d`` that tools read, hidden ones included."""
        block = new_block(*case)
        conv = plain(block)
        for name, value in conv.__dict__.items():
            if name not in NOT_ALIKE:
                assert name in block.__dict__, name
                own = block.__dict__[name]
                assert (list(own) == list(value)) if isinstance(value, tuple) else own == value, (
                    name
                )

    def test_contiguous_after_a_channels_last_image(self, case):
        """``weight.view(out_channels, -1)`` is what fusion tools begin with."""
        block = new_block(*case).eval()
        with torch.no_grad():
            block(image().contiguous(memory_format=torch.channels_last))
            block.weight.view(block.out_channels, -1)

    @pytest.mark.parametrize('layer', ['Conv2d', ['Conv2d', 'Linear']])
    def test_kaiming_of_mmengine_leaves_it_alone(self, case, layer):
        block = new_block(*case)
        model = nn.Sequential(block, nn.Conv2d(6, 4, 3))
        before, other = copy.deepcopy(block.state_dict()), model[1].weight.clone()
        init = dict(type='Kaiming', layer=layer)
        initialize(model, [init])
        assert not torch.equal(model[1].weight, other)
        for name, value in block.state_dict().items():
            assert torch.equal(value, before[name]), name
        block(image())

    def test_reset_parameters_starts_anew(self, case):
        """What ``nn.Conv2d`` has, and networks call on each one of their convolutions."""
        name, mode = case
        block = new_block(*case)
        before = copy.deepcopy(block.state_dict())
        torch.manual_seed(1)
        block.reset_parameters()
        kind, size = KINDS[name]
        options = {} if mode is None else dict(mode=mode)
        fresh = kind(*CHANNELS, size, padding=size // 2, **options)
        for key, expected in fresh.state_dict().items():
            value = block.state_dict()[key]
            if expected.unique().numel() <= 2:  # a constant, or an identity
                assert torch.equal(value, expected), key
            else:
                assert not torch.equal(value, before[key]), key
                assert value.std().item() == pytest.approx(expected.std().item(), rel=0.5), key
        torch.testing.assert_close(block.weight, block.merged()[0].to(block.weight.dtype))


def write_through_data(block):
    for parameter in block.kernel.parameters():
        parameter.data.mul_(0.5)


def load(block):
    block.load_state_dict({key: 0.5 * value for key, value in block.state_dict().items()})


def load_with_a_network(block):
    model = nn.Sequential(nn.Sequential(block))
    model.load_state_dict({key: 0.5 * value for key, value in model.state_dict().items()})


def evaluate(block):
    write_through_data(block)
    block.eval()


def train_again(block):
    block.eval()
    write_through_data(block)
    nn.Sequential(block).train()


def through_another_dtype(block):
    block.bfloat16().float()


def memory_of_its_own(block):
    block.to('meta').to_empty(device='cpu')
    block.load_state_dict(new_block('kxk', 'squeezed').state_dict())


@pytest.mark.parametrize('case', EVERY, ids=label)
def test_a_block_is_freed(case):
    block = new_block(*case)
    block(image()).square().mean().backward()
    freed = weakref.ref(block)
    del block
    gc.collect()
    assert freed() is None


class TestLeaf:
    """The leaf of squeezed mode, where nobody asks for ``weight``: a compiler, ``torch.func``."""

    @pytest.mark.parametrize(
        'change',
        [load, load_with_a_network, evaluate, train_again, through_another_dtype],
        ids=lambda f: f.__name__,
    )
    @pytest.mark.parametrize('name', GENERATED)
    def test_follows_at_once(self, name, change):
        block = new_block(name, 'squeezed')
        before = block._parameters['weight'].clone()
        change(block)
        leaf = block._parameters['weight']
        assert torch.equal(leaf, block.squeeze())
        assert not torch.equal(leaf, before)

    def test_after_it_got_memory(self):
        block = new_block('kxk', 'squeezed')
        memory_of_its_own(block)
        leaf = block._parameters['weight']
        assert torch.equal(leaf, new_block('kxk', 'squeezed').squeeze())

    def test_copies_follow_their_own_branches(self):
        block = new_block('kxk', 'squeezed')
        write_through_data(block)
        for clone in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(clone._parameters['weight'], clone.squeeze())

    def test_is_left_alone_where_nothing_has_changed(self):
        """Autograd may hold on to it."""
        block = new_block('kxk', 'squeezed')
        loss = block(image()).square().mean() + block.weight.square().sum()
        block.eval()
        block.train()
        block(image())
        loss.backward()
        assert block.weight.grad.abs().max() > 0

    def test_a_copy_comes_without_a_gradient(self):
        """As one for a moving average, made between a backward pass and the step."""
        block = new_block('kxk', 'squeezed')
        block(image()).square().mean().backward()
        clone = copy.deepcopy(block)
        torch.testing.assert_close(clone(image()), block(image()))

    def test_the_steps_of_a_stranger_are_an_error(self):
        block = new_block('kxk', 'squeezed')
        optimizer = torch.optim.SGD(block.parameters(), 0.1)
        block(image()).square().mean().backward()
        optimizer.step()
        with pytest.raises(UserError, match='an optimizer that does not know of the branches'):
            block(image())


@pytest.mark.parametrize('mode', ['online', 'offline'])
def test_fused_steps_in_eval_mode(mode):
    """Training goes on in eval mode, with a step that no version counter shows."""
    block = new_block('kxk', mode, bias=False).eval()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = block.weight.clone()
    for _ in range(3):
        block(image()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            after = block.weight.clone()
            torch.testing.assert_close(block(image()), plain(block)(image()))
            block(image())
        assert not torch.equal(after, before)
        assert torch.equal(after, expected_kernel(block))
        before = after
