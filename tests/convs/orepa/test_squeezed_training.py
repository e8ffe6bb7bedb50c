"""Squeezed training against training online, in float64 from the same seed."""

import copy
import functools
import gc
import pickle
import weakref
from unittest import mock

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations, prune

import mmorepa.pretrain  # noqa: F401
from mmorepa import OREPAConv2d, SqueezedTraining, squeeze
from mmorepa.convs import ExpandConv2d
from mmorepa.convs.generated import GeneratedConv2d
from mmorepa.convs.orepa import squeezed_training as squeezed
from mmorepa.convs.orepa.branches import Original
from mmorepa.convs.orepa.stacks import Stack
from mmorepa.errors import UserError
from mmorepa.repvgg_archs import ARCHS
from support import make_trained_like

SAME = 1e-9  # relative, parameters in float64 after all steps
FEW = 1e-12  # relative, parameters in float64 after a few steps of a few layers
HALF = 64  # roundings of the parameters' type, after a few steps of a few layers
STEPS = 10
#: BatchNorms see 256 values a channel in the last stage: with few of them rounding is amplified.
BATCH, SIZE = 4, 32
STRIDES = dict(strides=(1, 1, 1, 1))

NETWORKS = {
    'resnet18': dict(type='OREPAResNet', depth=18, base_channels=4, stem_channels=4, **STRIDES),
    'resnet50': dict(type='OREPAResNet', depth=50, base_channels=4, stem_channels=4, **STRIDES),
    'resnext50': dict(
        type='OREPAResNeXt',
        depth=50,
        base_channels=4,
        stem_channels=4,
        groups=2,
        width_per_group=2,
        **STRIDES,
    ),
    'repvgg-a0': dict(
        type='OREPARepVGG',
        arch=dict(ARCHS['A0'], stem_channels=4),
        base_channels=4,
        strides=(2, 2, 1, 1),
    ),
}
OPTIMIZERS = {
    'SGD': functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3),
    'AdamW': functools.partial(torch.optim.AdamW, lr=1e-4, weight_decay=1e-2),
}
#: Of the gradients of the first steps all are above it.
NORM = 0.5


class Classifier(nn.Module):
    def __init__(self, network, mode):
        super().__init__()
        cfg = dict(NETWORKS[network], reparam=dict(type='OREPA', mode=mode))
        if network == 'repvgg-a0':
            cfg['reparam']['type'] = 'OREPA-RepVGG'
        self.backbone = MODELS.build({**cfg, 'type': f'mmpretrain.{cfg["type"]}'})

    def forward(self, x):
        return self.backbone(x)[-1].mean((2, 3))


def build(network, mode):
    torch.manual_seed(0)
    return make_trained_like(Classifier(network, mode)).double().train()


def layers(mode='online', block=OREPAConv2d, **options):
    """Three layers with BatchNorms, a stem, a 3x3 and a 1x1 convolution among them."""
    torch.manual_seed(0)
    sizes = (7, 3, 1) if block is OREPAConv2d else (3, 5, 3)
    net = nn.Sequential()
    for channels, size in zip((3, 4, 4), sizes):
        conv = block(channels, 4, size, padding=size // 2, bias=False, mode=mode, **options)
        net += nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU())
    return net.double()


def blocks_of(net):
    return [module for module in net.modules() if isinstance(module, GeneratedConv2d)]


def loss_of(net, seed, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    sample = next(net.parameters())
    x = torch.randn(BATCH, 3, size, size, generator=generator, dtype=torch.float64).to(sample.dtype)
    out = net(x).float() if sample.dtype in (torch.float16, torch.bfloat16) else net(x)
    return nn.functional.cross_entropy(out.flatten(1), torch.arange(BATCH) % 3)


class Online:
    """A training loop's ``training`` where nothing is squeezed."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.zero_grad = optimizer.zero_grad

    def pull_back(self):
        pass

    def generate(self):
        pass

    def step(self):
        self.optimizer.step()

    def clip_grad_norm_(self, norm):
        return nn.utils.clip_grad_norm_(self.model.parameters(), norm)


def start(net, optimizer='SGD', **options):
    """The training of a network, squeezed if its blocks are, or if there are options."""
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    is_online = all(block.mode == 'online' for block in blocks_of(net)) and not options
    return Online(net, optimizer) if is_online else SqueezedTraining(net, optimizer, **options)


def train(training, steps=3, first=0, clip=None, accumulate=1, size=8):
    """Train, and give the losses, and norms of gradients."""
    seen = []
    for i in range(first, first + steps):
        for j in range(accumulate):
            loss = loss_of(training.model, i * accumulate + j, size) / accumulate
            loss.backward()
            seen.append(loss.item())
        training.pull_back()
        if clip:
            seen.append(float(training.clip_grad_norm_(clip)))
        training.optimizer.step()
        training.generate()
        training.zero_grad()
    return seen


def differences(net, other):
    """Relative differences of all parameters, statistics and kernels, by name."""
    first, second = net.state_dict(), other.state_dict()
    assert list(first) == list(second)
    found = {}
    for name, value in first.items():
        found[name] = relative(value, second[name])
    for i, (a, b) in enumerate(zip(blocks_of(net), blocks_of(other))):
        found[f'kernel {i}'] = relative(a.weight.detach(), b.squeeze().detach())
    return found


def relative(a, b):
    assert a.shape == b.shape
    a, b = a.double(), b.double()
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def assert_same(net, other, tolerance=FEW):
    found = differences(net, other)
    largest = max(found, key=found.get)
    assert found[largest] <= tolerance, (largest, found[largest])


RECIPES = {
    'SGD': dict(optimizer='SGD'),
    'SGD, clipped, accumulated': dict(optimizer='SGD', clip=NORM, accumulate=2),
    'AdamW': dict(optimizer='AdamW'),
    'AdamW, clipped, accumulated': dict(optimizer='AdamW', clip=NORM, accumulate=2),
}
CASES = [('resnet18', recipe) for recipe in RECIPES]
CASES += [(n, r) for n in list(NETWORKS)[1:] for r in ('SGD, clipped, accumulated', 'AdamW')]


@functools.cache
def online(network, recipe):
    return trained(network, recipe, 'online')


def trained(network, recipe, mode, **options):
    recipe = dict(RECIPES[recipe])
    training = start(build(network, mode), recipe.pop('optimizer'), **options)
    return training.model, train(training, STEPS, size=SIZE, **recipe)


@pytest.mark.parametrize('network, recipe', CASES)
@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
def test_equals_online(network, recipe, grouped):
    expected, losses = online(network, recipe)
    net, found = trained(network, recipe, 'squeezed', grouped=grouped)
    assert found == pytest.approx(losses, rel=SAME)
    assert_same(net, expected, SAME)
    if 'clipped' in recipe:
        assert losses[2] > NORM


@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
@pytest.mark.parametrize('rates', [{}, dict(maximize=True, nesterov=True)], ids=['', 'nesterov'])
def test_a_step_in_one_call(grouped, rates):
    """``training.step()``, on blocks that were online before."""
    nets = layers(), layers()
    trainings = [
        kind(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, **rates))
        for kind, net in zip((Online, functools.partial(SqueezedTraining, grouped=grouped)), nets)
    ]
    for i in range(3):
        for training in trainings:
            loss_of(training.model, i, 8).backward()
            training.step()
            training.zero_grad()
    assert_same(nets[1], nets[0])
    assert all(block.mode == 'squeezed' for block in blocks_of(nets[1]))


class Custom(Original):
    """A branch that nothing is known of but its formula."""

    def forward(self):
        return super().forward() * 2


def with_a_custom_branch(conv):
    conv.kernel.original.__class__ = Custom


def with_a_parametrized_branch(conv):
    parametrizations.weight_norm(conv.kernel.original, 'weight')


def with_a_pruned_branch(conv):
    prune.l1_unstructured(conv.kernel.original, 'weight', 0.5)


def with_a_hook(conv):
    conv.kernel.original.register_forward_hook(lambda branch, args, kernel: kernel * 2)


FORMULAS = [with_a_custom_branch, with_a_parametrized_branch, with_a_pruned_branch, with_a_hook]


@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('change', FORMULAS, ids=lambda change: change.__name__)
def test_what_has_no_fast_path(change, optimizer, grouped):
    """Such a block goes by its formula, the others as ever."""
    nets = layers(), layers()
    for net in nets:
        change(blocks_of(net)[1])
    train(start(nets[0], optimizer), clip=NORM)
    train(start(nets[1], optimizer, grouped=grouped), clip=NORM)
    assert_same(nets[1], nets[0])


@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
def test_other_blocks(grouped):
    nets = layers(block=ExpandConv2d, rate=2), layers('squeezed', ExpandConv2d, rate=2)
    train(start(nets[0]))
    train(start(nets[1], grouped=grouped))
    assert_same(nets[1], nets[0])


@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_parameters(dtype, grouped):
    """They are pulled back in float32, and trained as they are online."""
    nets = layers().to(dtype), layers('squeezed').to(dtype)
    before = copy.deepcopy(nets[1].state_dict())
    train(start(nets[0]))
    train(start(nets[1], grouped=grouped))
    assert {p.dtype for p in nets[1].parameters()} == {dtype}
    moved = [not torch.equal(v, before[k]) for k, v in nets[1].state_dict().items()]
    assert sum(moved) > len(moved) / 2
    assert_same(nets[1], nets[0], HALF * torch.finfo(dtype).eps)


class TestFrozen:
    @pytest.fixture(params=[False, True], ids=['', 'grouped'])
    def grouped(self, request):
        return request.param

    @pytest.mark.parametrize('mode', ['online', 'squeezed'])
    def test_blocks(self, mode, grouped):
        nets = layers(), layers(mode)
        for net in nets:
            net[3].requires_grad_(False)
        before = copy.deepcopy(nets[1][3].state_dict())
        train(start(nets[0]))
        train(start(nets[1], grouped=grouped))
        assert_same(nets[1], nets[0])
        assert_unchanged(nets[1][3], before)

    @pytest.mark.parametrize('mode', ['online', 'squeezed'])
    @pytest.mark.parametrize('whole', [False, True], ids=['weight', 'block'])
    def test_unfreezing(self, mode, grouped, whole):
        """In squeezed mode ``weight`` says what is trained, whatever the branches say."""
        nets = layers(), layers(mode)
        for net in nets:
            net[3].requires_grad_(False)
        trainings = start(nets[0]), start(nets[1], grouped=grouped)
        for training in trainings:
            train(training)
        before = copy.deepcopy(nets[1][3].state_dict())
        nets[0][3].requires_grad_(True)
        (nets[1][3] if whole else nets[1][3].weight).requires_grad_(True)
        for training in trainings:
            train(training, first=3, clip=NORM)
        assert_same(nets[1], nets[0])
        moved = [not torch.equal(v, before[k]) for k, v in nets[1][3].state_dict().items()]
        assert all(moved)

    def test_freezing(self, grouped):
        nets = layers(), layers('squeezed')
        trainings = start(nets[0]), start(nets[1], grouped=grouped)
        for training in trainings:
            train(training)
        before = copy.deepcopy(nets[1][3].state_dict())
        for net in nets:
            net[3].requires_grad_(False)
        for training in trainings:
            train(training, first=3)
        assert_same(nets[1], nets[0])
        assert_unchanged(nets[1][3], before)

    def test_some_branches(self, grouped):
        """Those that do not require grad where the block was online."""
        nets = layers(), layers()
        for net in nets:
            net[3].kernel.separable.requires_grad_(False)
            net[0].kernel[1].average.scale.requires_grad_(False)
        before = copy.deepcopy(nets[1][3].kernel.separable.state_dict())
        train(start(nets[0], 'AdamW'))
        train(start(nets[1], 'AdamW', grouped=grouped))
        assert_same(nets[1], nets[0])
        assert_unchanged(nets[1][3].kernel.separable, before)

    def test_what_the_optimizer_does_not_hold(self, grouped):
        nets = layers(), layers('squeezed')
        left = [id(p) for net in nets for p in net[3].kernel.separable.parameters()]
        nets[0][3].kernel.separable.requires_grad_(False)
        before = copy.deepcopy(nets[1][3].kernel.separable.state_dict())
        optimizers = [
            torch.optim.SGD([p for p in net.parameters() if id(p) not in left], lr=0.1)
            for net in nets
        ]
        train(Online(nets[0], optimizers[0]))
        train(SqueezedTraining(nets[1], optimizers[1], grouped=grouped))
        assert_same(nets[1], nets[0])
        assert_unchanged(nets[1][3].kernel.separable, before)

    def test_unfrozen_without_a_place_in_the_optimizer(self, grouped):
        net = layers('squeezed')
        net[3].requires_grad_(False)
        left = [id(p) for p in net[3].parameters()]
        optimizer = torch.optim.SGD([p for p in net.parameters() if id(p) not in left], lr=0.1)
        training = SqueezedTraining(net, optimizer, grouped=grouped)
        train(training)
        net[3].weight.requires_grad_(True)
        with pytest.raises(UserError, match='the optimizer has no parameter of the branches of 3'):
            train(training)


def assert_unchanged(module, before):
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
def test_a_step_that_the_loss_scaler_skips(grouped):
    nets = layers(), layers('squeezed')
    for net, options in zip(nets, ({}, dict(grouped=grouped))):
        training = start(net, 'AdamW', **options)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**16)
        for i in range(4):
            before = copy.deepcopy(dict(net.named_parameters()))
            factor = float('inf') if i == 1 else 1.0
            scaler.scale(loss_of(net, i, 8) * factor).backward()
            training.pull_back()
            scaler.unscale_(training.optimizer)
            training.clip_grad_norm_(NORM)
            scaler.step(training.optimizer)
            scaler.update()
            training.generate()
            training.zero_grad()
            same = [torch.equal(p, before[name]) for name, p in net.named_parameters()]
            assert all(same) if i == 1 else not any(same)
        assert scaler.get_scale() == 2.0**15
    assert_same(nets[1], nets[0])


@pytest.mark.parametrize('set_to_none', [True, False])
@pytest.mark.parametrize('is_pulled', [True, False])
def test_the_gradient_of_a_bad_loss_is_left_out(set_to_none, is_pulled):
    nets = layers(), layers('squeezed')
    for net in nets:
        training = start(net)
        train(training)
        (loss_of(net, 9, 8) * float('nan')).backward()
        if is_pulled:
            training.pull_back()
        training.zero_grad(set_to_none=set_to_none)
        train(training, first=3)
    assert_same(nets[1], nets[0])


@pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
def test_accumulation_generates_once(grouped):
    net = build('resnet18', 'squeezed')
    training = start(net, grouped=grouped)
    train(training, 1)
    layers = [part for block in blocks_of(net) for part in squeezed._sums(block)]
    counts = {}
    for owner, name in ((squeezed, 'write_sum'), (squeezed, 'pull_sum_back')):
        counts[name] = mock.Mock(wraps=getattr(owner, name))
    stacked = {name: getattr(Stack, name) for name in ('generate', 'pull_back')}
    stacked = {name: mock.Mock(side_effect=own) for name, own in stacked.items()}
    by_formula = mock.Mock(wraps=GeneratedConv2d.squeeze)
    with (
        mock.patch.multiple(squeezed, **counts),
        mock.patch.multiple(Stack, **{n: _method(own) for n, own in stacked.items()}),
        mock.patch.object(GeneratedConv2d, 'squeeze', _method(by_formula)),
    ):
        train(training, 1, accumulate=4)
    stacks = len(training._stacks) if grouped else 0
    # The stem is composed of its layers' kernels.
    assert by_formula.call_count == (0 if grouped else 1)
    assert counts['write_sum'].call_count == (0 if grouped else len(blocks_of(net)) - 1)
    assert counts['pull_sum_back'].call_count == (0 if grouped else len(layers))
    assert {name: own.call_count for name, own in stacked.items()} == dict.fromkeys(stacked, stacks)
    assert bool(stacks) == grouped


def _method(function):
    def method(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return method


class TestErrors:
    def test_no_block(self):
        net = squeeze(layers())
        with pytest.raises(UserError, match='Sequential has no block with a generated kernel'):
            SqueezedTraining(net, torch.optim.SGD(net.parameters(), lr=0.1))

    @pytest.mark.parametrize('mode', ['online', 'squeezed'])
    def test_an_optimizer_without_the_branches(self, mode):
        net = layers(mode)
        names = [name for name, _ in net.named_parameters() if '3.kernel' not in name]
        parameters = dict(net.named_parameters())
        optimizer = torch.optim.SGD([parameters[name] for name in names], lr=0.1)
        message = 'the optimizer has no parameter of the branches of 3: build it over model.param'
        with pytest.raises(UserError, match=message):
            SqueezedTraining(net, optimizer)

    def test_an_optimizer_that_needs_a_closure(self):
        net = layers('online')
        with pytest.raises(UserError, match="LBFGS evaluates .* train it with mode='online'"):
            SqueezedTraining(net, torch.optim.LBFGS(net.parameters()))
        assert net[0].mode == 'online'

    def test_a_scheduler_that_knows_a_group_of_kernels(self):
        net = layers('squeezed')
        kernels = {id(block.weight) for block in (net[0], net[3])}
        groups = [
            [p for p in net.parameters() if (id(p) in kernels) == is_kernel] for is_kernel in (0, 1)
        ]
        optimizer = torch.optim.SGD([dict(params=group) for group in groups], lr=0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        with pytest.raises(UserError, match='a scheduler was made before|scheduler after it'):
            SqueezedTraining(net, optimizer)

    def test_an_optimizer_of_what_requires_grad(self):
        net = layers('squeezed')
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        with pytest.raises(UserError, match='the optimizer has no parameter of the branches of 0'):
            SqueezedTraining(net, optimizer)

    @pytest.mark.parametrize(
        'options', [{}, dict(foreach=True), dict(fused=True)], ids=['', 'foreach', 'fused']
    )
    @pytest.mark.parametrize('only_leaves', [False, True])
    def test_a_loop_that_knows_nothing_of_it(self, options, only_leaves):
        net = layers('squeezed')
        parameters = [p for p in net.parameters() if p.requires_grad or not only_leaves]
        optimizer = torch.optim.SGD(parameters, lr=0.1, **options)
        loss_of(net, 0, 8).backward()
        optimizer.step()
        optimizer.zero_grad()
        with pytest.raises(UserError, match='train it with mmorepa.SqueezedTraining, or') as error:
            loss_of(net, 1, 8)
        assert '\n' not in str(error.value)
        assert "mode='squeezed'" in str(error.value)

    @pytest.mark.parametrize('call', [nn.Module.train, nn.Module.eval, nn.Module.state_dict])
    def test_a_leaf_that_was_stepped_is_not_passed_over(self, call):
        net = layers('squeezed')
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss_of(net, 0, 8).backward()
        optimizer.step()
        with pytest.raises(UserError, match='its kernel was written to, perhaps by an optimizer'):
            call(net)

    @pytest.mark.parametrize('call', [nn.Module.train, nn.Module.eval, nn.Module.state_dict])
    def test_a_fused_step_of_a_compiled_network_is_not_passed_over(self, call):
        """It changes no version, and what was compiled does not look at the leaf."""
        net = layers('squeezed')
        run = torch.compile(net, backend='eager')
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        for i in range(2):
            loss_of(run, i, 8).backward()
            optimizer.step()
            optimizer.zero_grad()
        with pytest.raises(UserError, match='dropped before it was pulled back'):
            call(net)

    def test_a_gradient_that_was_dropped(self):
        net = layers('squeezed')
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss_of(net, 0, 8).backward()
        optimizer.zero_grad()
        with pytest.raises(UserError, match='dropped before it was pulled back'):
            loss_of(net, 1, 8)

    def test_a_step_without_a_gradient(self):
        training = start(layers('squeezed'))
        with pytest.raises(UserError, match='no kernel has a gradient to pull back'):
            training.step()
        train(training, 1)
        with pytest.raises(UserError, match='no kernel has a gradient to pull back'):
            training.step()

    @pytest.mark.parametrize('scaled', [False, True], ids=['', 'scaled'])
    def test_a_step_of_the_optimizer_without_a_pull_back(self, scaled):
        """The branches would stay as they are."""
        training = start(layers('squeezed'))
        scaler = torch.amp.GradScaler('cpu', enabled=scaled)
        before = copy.deepcopy(training.model.state_dict())
        scaler.scale(loss_of(training.model, 0, 8)).backward()
        with pytest.raises(UserError, match='of 0 was not pulled back .* training.step') as error:
            scaler.step(training.optimizer)
        assert '\n' not in str(error.value)
        for name, value in training.model.state_dict().items():
            assert torch.equal(value, before[name]) or 'running' in name or 'tracked' in name
        # Another turn is right again, and so is an optimizer whose network was squeezed.
        training.zero_grad()
        train(training, 1)
        squeeze(training.model)
        loss_of(training.model, 1, 8).backward()
        training.optimizer.step()

    def test_a_step_after_squeezing(self):
        model = nn.Sequential(OREPAConv2d(3, 4, 3))
        training = SqueezedTraining(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model(torch.randn(1, 3, 8, 8)).sum().backward()
        squeeze(model)
        with pytest.raises(UserError, match='0 was turned into a plain convolution: train the'):
            training.step()

    def test_no_processes_to_share_with(self):
        with pytest.raises(UserError, match='shard=True wants torch.distributed'):
            start(layers('squeezed'), shard=True)


class TestState:
    @pytest.mark.parametrize('optimizer', OPTIMIZERS)
    @pytest.mark.parametrize('modes', [('online', 'squeezed'), ('squeezed', 'online')])
    def test_goes_on_in_the_other_mode(self, modes, optimizer):
        """Of model and optimizer, with groups as somebody has made them."""

        def begin(mode):
            net = layers(mode)
            groups = [dict(params=list(net[i].parameters()), lr=0.01 * (i + 1)) for i in range(9)]
            groups = [group for group in groups if group['params']]
            optimized = OPTIMIZERS[optimizer](groups)
            kind = Online if mode == 'online' else SqueezedTraining
            return kind(net, optimized)

        whole, first, second = begin('online'), begin(modes[0]), begin(modes[1])
        train(whole, 6)
        train(first)
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        train(second, first=3)
        assert_same(second.model, whole.model)
        assert_same_structure(second.optimizer.state_dict(), whole.optimizer.state_dict())

    def test_keys_are_those_of_all_modes(self):
        states = [layers(mode).state_dict() for mode in OREPAConv2d.modes]
        assert len(states) == 3
        assert all(list(state) == list(states[0]) for state in states)
        training = start(layers())
        train(training)
        assert list(training.model.state_dict()) == list(states[0])

    @pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
    def test_the_mode_is_switched_in_the_middle(self, grouped):
        """To online and back, with one optimizer."""
        nets = layers(), layers()
        optimizers = [OPTIMIZERS['SGD'](net.parameters()) for net in nets]
        train(Online(nets[0], optimizers[0]), 9)
        train(SqueezedTraining(nets[1], optimizers[1], grouped=grouped))
        for block in blocks_of(nets[1]):
            block.mode = 'online'
        train(Online(nets[1], optimizers[1]), first=3)
        train(SqueezedTraining(nets[1], optimizers[1], grouped=grouped), first=6)
        assert_same(nets[1], nets[0])

    @pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
    @pytest.mark.parametrize('copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
    def test_copies(self, copied, grouped):
        """A copy in the middle trains on by itself, and so does the original."""
        expected = start(layers())
        train(expected, 6)
        training = start(layers('squeezed'), grouped=grouped)
        train(training)
        clone = start(copied(training.model), grouped=grouped)
        clone.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
        train(clone, first=3)
        assert_same(clone.model, expected.model)
        train(training, first=3)
        assert_same(training.model, expected.model)

    @pytest.mark.parametrize('grouped', [False, True], ids=['', 'grouped'])
    def test_all_is_freed(self, grouped):
        training = start(layers('squeezed'), grouped=grouped)
        train(training)
        freed = [weakref.ref(one) for one in (training, training.optimizer, training.model[0])]
        del training
        gc.collect()
        assert [one() for one in freed] == [None] * 3

    def test_a_copy_knows_of_gradients_that_were_dropped(self):
        net = copy.deepcopy(layers('squeezed'))
        loss_of(net, 0, 8).backward()
        net.zero_grad()
        with pytest.raises(UserError, match='dropped before it was pulled back'):
            loss_of(net, 0, 8)


def assert_same_structure(found, expected):
    assert found['param_groups'] == expected['param_groups']
    assert list(found['state']) == list(expected['state'])
    for i, state in expected['state'].items():
        assert list(found['state'][i]) == list(state)
        for name, value in state.items():
            assert relative(found['state'][i][name], value) < FEW


class TestStackedParameters:
    @pytest.fixture
    def training(self):
        training = start(layers('squeezed', branches=['original', 'average']), grouped=True)
        train(training)
        assert len(training._stacks) > 1
        return training

    @pytest.fixture
    def expected(self):
        training = start(layers(branches=['original', 'average']))
        train(training)
        return training

    def test_survive_steps(self, training, expected):
        stacks = list(training._stacks)
        train(training, first=3)
        train(expected, first=3)
        assert training._stacks == stacks
        assert all(stack.is_whole for stack in stacks)
        assert_same(training.model, expected.model)

    def test_survive_loading(self, training, expected):
        stacks = list(training._stacks)
        state = copy.deepcopy(expected.model.state_dict())
        train(training, first=3)
        training.model.load_state_dict(state)
        assert all(stack.is_whole for stack in stacks)
        assert_same(training.model, expected.model)
        fresh = OPTIMIZERS['SGD'](training.model.parameters())
        training = SqueezedTraining(training.model, fresh, grouped=True)
        expected = Online(expected.model, OPTIMIZERS['SGD'](expected.model.parameters()))
        train(training, first=3)
        train(expected, first=3)
        assert_same(training.model, expected.model)

    def test_are_stacked_again_after_a_move(self):
        net, expected = layers('squeezed').float(), layers().float()
        training = start(net, 'AdamW', grouped=True)
        before = copy.deepcopy(net.state_dict())
        train(training)
        stacks = list(training._stacks)
        for model in (net, expected):
            model.double().load_state_dict(before)
        assert not any(stack.is_whole for stack in stacks)
        training.optimizer.state.clear()
        train(training)
        train(start(expected, 'AdamW'))
        assert not set(training._stacks) & set(stacks)
        assert all(stack.is_whole for stack in training._stacks)
        assert {p.dtype for p in net.parameters()} == {torch.float64}
        assert_same(net, expected)
