"""Two processes over gloo that share the blocks out, against two that train online."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import mmorepa.pretrain  # noqa: F401
from faults.common import in_processes
from mmorepa import OREPAConv2d, SqueezedTraining, squeeze
from mmorepa.convs.generated import GeneratedConv2d
from mmorepa.convs.orepa.squeezed_training import share_out, work
from mmorepa.errors import UserError

SAME = 1e-9  # relative, parameters in float64 after all steps
STEPS = 4
#: The step that is skipped where something is.
SKIPPED = 1
EVEN = 0.6  # of the work, the most that one of two processes has

#: What is done in each step; ``stop`` begins anew from a checkpoint after two steps.
RECIPES = {
    'AdamW': {},
    'SGD': dict(optimizer='SGD'),
    'clipped': dict(clip=0.1),
    'clipped by the largest': dict(clip=0.01, norm_type=float('inf')),
    'accumulated': dict(accumulate=2, clip=0.1),
    'frozen': dict(frozen=True),
    'channels_last': dict(memory_format=torch.channels_last),
    'float16 gradients': dict(scale=2.0**16),
    'stopped': dict(stop=True, clip=0.1),
}
MODES = {
    'online': None,
    'unsharded': dict(shard=False),
    'sharded': dict(shard=True),
    'sharded, grouped': dict(shard=True, grouped=True),
}
SHARDED = [mode for mode in MODES if mode.startswith('sharded')]
OPTIMIZERS = {
    'SGD': functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
    'AdamW': functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2),
}


def network(mode):
    """Blocks with a stem, two of one geometry and one with groups among them."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for channels, out, size, groups in (
        (3, 8, 7, 1), (8, 8, 3, 1), (8, 12, 3, 1), (12, 12, 3, 2),
    ):  # fmt: skip
        conv = OREPAConv2d(
            channels, out, size, padding=size // 2, groups=groups, bias=False, mode=mode
        )
        net += nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())
    net += nn.Sequential(OREPAConv2d(12, 3, 1, mode=mode), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net.double()


def blocks_of(net):
    return [module for module in net.modules() if isinstance(module, GeneratedConv2d)]


def loss_of(net, seed):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    return nn.functional.cross_entropy(net(x), torch.arange(4) % 3)


class Run:
    """One training in this process, and what is seen of it."""

    def __init__(self, mode, recipe, net=None):
        self.recipe = RECIPES[recipe]
        self.options = MODES[mode]
        net = network('online' if self.options is None else 'squeezed') if net is None else net
        net = net.to(memory_format=self.recipe.get('memory_format'))
        if self.recipe.get('frozen'):
            net[6].requires_grad_(False)
        self.net = net
        self.model = DistributedDataParallel(net) if dist.is_initialized() else net
        self.optimizer = OPTIMIZERS[self.recipe.get('optimizer', 'AdamW')](net.parameters())
        self.training = None
        if self.options is not None:
            self.training = SqueezedTraining(self.model, self.optimizer, **self.options)
        self.scaler = None
        if 'scale' in self.recipe:
            kind = torch.amp.GradScaler if self.training is None else ShardedGradScaler
            self.scaler = kind('cpu', init_scale=self.recipe['scale'])
        self.seen = []

    def step(self, i, rank):
        count = self.recipe.get('accumulate', 1)
        for j in range(count):
            if j + 1 < count:
                with self.model.no_sync():
                    self._backward(loss_of(self.model, 10 * i + 2 * j + rank) / count)
            else:
                self._backward(loss_of(self.model, 10 * i + 2 * j + rank) / count)
        if self.scaler and i == SKIPPED:
            # Of one block alone, which one process owns.
            for parameter in self._trained_in(blocks_of(self.net)[1]):
                parameter.grad.fill_(float('inf'))
        if self.training:
            self.training.pull_back()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if 'clip' in self.recipe:
            clip = self.recipe['clip'], self.recipe.get('norm_type', 2.0)
            if self.training:
                self.seen.append(self.training.clip_grad_norm_(*clip).item())
            else:
                norm = nn.utils.clip_grad_norm_(self.net.parameters(), *clip)
                self.seen.append(norm.item())
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.seen.append(self.scaler.get_scale())
        else:
            self.optimizer.step()
        if self.training:
            self.training.generate()

    def zero_grad(self):
        (self.training or self.optimizer).zero_grad()

    def consolidate(self):
        if self.training:
            self.training.consolidate()

    def _backward(self, loss):
        self.seen.append(loss.item())
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _trained_in(self, block):
        return [block.weight] if self.training else block.kernel.parameters()


def run(mode, recipe, rank):
    """A whole training, and all that is asked about it later."""
    own = Run(mode, recipe)
    for i in range(STEPS):
        if own.recipe.get('stop') and i == STEPS // 2:
            own = resumed(own, mode, recipe)
        own.step(i, rank)
        held = {name: p.grad is not None for name, p in own.net.named_parameters()}
        own.zero_grad()
    found = dict(seen=own.seen, held=held, kernels=[b.weight.detach() for b in blocks_of(own.net)])
    found['state held'] = {
        name: bool(own.optimizer.state.get(p)) for name, p in own.net.named_parameters()
    }
    if own.training:
        found['blocks'] = list(own.training.own_blocks)
        found['errors'] = {name: error_of(call, own) for name, call in READERS.items()}
    own.net.eval()
    with torch.no_grad():
        found['evaluated'] = own.net(torch.ones(2, 3, 8, 8).double())
    own.consolidate()
    found['state_dict'] = own.net.state_dict()
    found['again'] = [block.squeeze().detach() for block in blocks_of(own.net)]
    # Of the others only what they step is there.
    found['optimizer'] = own.optimizer.state_dict() if rank == 0 else None
    return copy.deepcopy(found)


def resumed(old, mode, recipe):
    """A new training from the checkpoint that the first process has."""
    old.consolidate()
    states = [old.net.state_dict(), old.optimizer.state_dict()]
    dist.broadcast_object_list(states)
    new = Run(mode, recipe)
    new.net.load_state_dict(states[0])
    new.optimizer.load_state_dict(states[1])
    new.seen = old.seen
    return new


READERS = {
    'state_dict': lambda own: own.net.state_dict(),
    'optimizer.state_dict': lambda own: own.optimizer.state_dict(),
    'squeeze': lambda own: [block.squeeze() for block in blocks_of(own.net)],
    'squeeze(model)': lambda own: squeeze(copy.deepcopy(own.net)),
    'shard': lambda own: setattr(own.training, 'shard', False),
}


def error_of(call, own):
    try:
        call(own)
    except UserError as error:
        return str(error)
    return None


def trained(net, steps=2, seed=0, **options):
    """Some steps, what trains, and all kernels afterwards, as they are and of the branches."""
    own = net.module if isinstance(net, DistributedDataParallel) else net
    training = SqueezedTraining(net, OPTIMIZERS['AdamW'](own.parameters()), **options)
    for i in range(steps):
        loss_of(net, seed + i).backward()
        training.step()
        training.zero_grad()
    leaves = [block.weight.detach().clone() for block in blocks_of(own)]
    training.consolidate()
    return training, leaves, [block.squeeze().detach() for block in blocks_of(own)]


def groups_of_their_own(rank):
    """Two trainings of one process each, beside each other."""
    group = [dist.new_group([i]) for i in range(2)][rank]
    found = {}
    for shard in (None, True):
        net = DistributedDataParallel(network('squeezed'), process_group=group)
        training, leaves, _ = trained(net, seed=rank, shard=shard)
        alone = trained(network('squeezed'), seed=rank, shard=False)[1]
        same = all(torch.equal(*pair) for pair in zip(leaves, alone))
        found[shard] = training.shard, same
    return found


def two_memory_formats(rank):
    """Blocks of one geometry and one owner, of which one is in channels_last."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    for _ in range(4):
        net += nn.Sequential(
            OREPAConv2d(8, 8, 3, padding=1, bias=False, mode='squeezed'), nn.BatchNorm2d(8)
        )
    net += nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for i in (0, 3):
        blocks_of(net)[i].to(memory_format=torch.channels_last)
    net = DistributedDataParallel(net.double())
    training, leaves, kernels = trained(net, shard=True, grouped=True)
    owners = list(training.owners.values())
    return owners, max(relative(*pair) for pair in zip(leaves, kernels))


def nothing_to_clip(rank):
    """One block, so that one of the processes has no gradient."""
    conv = OREPAConv2d(3, 3, 3, bias=False, mode='squeezed')
    net = DistributedDataParallel(
        nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    )
    training = SqueezedTraining(net, OPTIMIZERS['SGD'](net.module.parameters()))
    loss_of(net, 0).backward()
    training.pull_back()
    return training.clip_grad_norm_(1e-3).item()


def no_longer_shared_out(rank):
    training, *_ = trained(DistributedDataParallel(network('squeezed')), shard=True)
    with pytest.raises(UserError) as error:
        training.shard = False
    return str(error.value)


def zero(rank):
    net = DistributedDataParallel(network('squeezed'))
    optimizer = ZeroRedundancyOptimizer(net.module.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(UserError) as error:
        SqueezedTraining(net, optimizer)
    return str(error.value)


CASES = [groups_of_their_own, two_memory_formats, nothing_to_clip, no_longer_shared_out, zero]


def in_process(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    found = {(mode, recipe): run(mode, recipe, rank) for mode in MODES for recipe in RECIPES}
    with pytest.raises(UserError) as error:
        net = network('online')
        wrapped = DistributedDataParallel(net)
        SqueezedTraining(wrapped, torch.optim.SGD(net.parameters(), lr=0.1))
    found['online inside DDP'] = str(error.value)
    found.update({case.__name__: case(rank) for case in CASES})
    torch.save(found, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """What both processes saw, by mode and recipe."""
    folder = tmp_path_factory.mktemp('shared_out')
    assert in_processes(in_process, folder, count=2) == [0, 0]
    return [torch.load(folder / f'{rank}.pth', weights_only=False) for rank in range(2)]


def relative(a, b):
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('mode', list(MODES)[1:])
class TestEqualsOnline:
    def test_parameters_and_statistics(self, found, mode, recipe):
        for rank in found:
            states = [rank[kind, recipe]['state_dict'] for kind in (mode, 'online')]
            assert list(states[0]) == list(states[1])
            for name, value in states[1].items():
                assert relative(states[0][name].double(), value.double()) < SAME, name

    def test_kernels(self, found, mode, recipe):
        """Those that each process trains on, and those of the branches later."""
        for rank in found:
            for kind in ('kernels', 'again'):
                own, expected = rank[mode, recipe][kind], rank['online', recipe]['again']
                assert all(relative(*pair) < SAME for pair in zip(own, expected))

    def test_losses_and_norms(self, found, mode, recipe):
        for rank in found:
            own, expected = (rank[kind, recipe]['seen'] for kind in (mode, 'online'))
            assert own == pytest.approx(expected, rel=SAME)

    def test_evaluation(self, found, mode, recipe):
        """Without anything to be brought together first."""
        for rank in found:
            own, expected = (rank[kind, recipe]['evaluated'] for kind in (mode, 'online'))
            assert relative(own, expected) < SAME

    def test_state_of_the_optimizer(self, found, mode, recipe):
        own, expected = (found[0][kind, recipe]['optimizer'] for kind in (mode, 'online'))
        assert own['param_groups'] == expected['param_groups']
        assert list(own['state']) == list(expected['state'])
        for i, state in expected['state'].items():
            assert own['state'][i].keys() == state.keys()
            for name, value in state.items():
                assert relative(own['state'][i][name], value) < SAME


def test_the_recipes_do_what_they_say(found):
    recipes = {name: found[0]['online', name] for name in RECIPES}
    assert max(recipes['clipped']['seen'][1::2]) > RECIPES['clipped']['clip']
    largest = RECIPES['clipped by the largest']['clip']
    assert max(recipes['clipped by the largest']['seen'][1::2]) > largest
    assert len(recipes['accumulated']['seen']) == 3 * STEPS
    assert recipes['float16 gradients']['seen'][1::2] == [2.0**16] + [2.0**15] * (STEPS - 1)
    assert found[0]['sharded', 'channels_last']['kernels'][0].is_contiguous(
        memory_format=torch.channels_last
    )
    assert recipes['frozen']['held']['3.kernel.original.weight']
    assert not recipes['frozen']['held']['6.kernel.original.weight']
    assert not any(key in recipes['AdamW']['seen'] for key in found[1]['online', 'AdamW']['seen'])


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('mode', SHARDED)
def test_each_process_keeps_what_it_owns(found, mode, recipe):
    """Gradients of branches, and the optimizer's state: of the other's blocks nothing."""
    names = [rank[mode, recipe]['blocks'] for rank in found]
    assert sorted(names[0] + names[1]) == ['0', '12', '3', '6', '9']
    frozen = ['6'] if recipe == 'frozen' else []
    for rank, own in zip(found, names):
        for kept in ('held', 'state held'):
            branches = {n: is_there for n, is_there in rank[mode, recipe][kept].items()}
            for name, is_there in branches.items():
                block, _, rest = name.partition('.')
                if rest == 'weight' and block in (*names[0], *names[1]):
                    assert not is_there, name
                elif rest.startswith('kernel.'):
                    assert is_there == (block in own and block not in frozen), name
                else:
                    assert is_there, name


@pytest.mark.parametrize('mode', SHARDED)
def test_reading_what_is_out_of_date(found, mode):
    for rank in found:
        errors = dict(rank[mode, 'AdamW']['errors'])
        assert errors.pop('shard').startswith("shard=False wants the optimizer's state")
        assert 'spread over the processes' in errors['optimizer.state_dict']
        assert 'stepped in another process' in errors['squeeze']
        for message in errors.values():
            assert 'consolidate() in all' in message
            assert '\n' not in message
        unsharded = rank['unsharded', 'AdamW']['errors']
        assert unsharded == dict.fromkeys(READERS)


def test_blocks_are_shared_out_in_the_group_of_ddp(found):
    for rank in found:
        assert rank['groups_of_their_own'] == {None: (False, True), True: (True, True)}


def test_kernels_arrive_as_they_are_in_either_memory_format(found):
    for rank in found:
        owners, difference = rank['two_memory_formats']
        assert owners == [0, 1, 0, 1]
        assert difference < SAME


def test_a_process_without_gradients_clips_too(found):
    norms = [rank['nothing_to_clip'] for rank in found]
    assert norms[0] == norms[1] > 0


def test_refuses_to_go_on_without_the_state_of_others(found):
    for rank in found:
        assert rank['no_longer_shared_out'].startswith(
            "shard=False wants the optimizer's state of all blocks, which is spread over"
        )


def test_refuses_an_optimizer_that_shares_out_itself(found):
    for rank in found:
        assert rank['zero'].startswith('shard=True does not go with ZeroRedundancyOptimizer')


def test_blocks_have_to_be_squeezed_before_ddp(found):
    message = "0 is not in mode='squeezed', and DistributedDataParallel reduces the gradients of"
    assert found[0]['online inside DDP'].startswith(message)


@pytest.mark.parametrize('mode', SHARDED)
@pytest.mark.parametrize('recipe', ['AdamW', 'SGD'])
@pytest.mark.parametrize('goes_on', ['online', 'squeezed'])
def test_a_checkpoint_goes_on_in_one_process(found, mode, recipe, goes_on):
    states = []
    for kind in (mode, 'online'):
        own = Run('online' if goes_on == 'online' else 'unsharded', recipe)
        checkpoint = copy.deepcopy(found[0][kind, recipe])
        own.net.load_state_dict(checkpoint['state_dict'])
        own.optimizer.load_state_dict(checkpoint['optimizer'])
        for i in range(3):
            own.step(i, 0)
            own.zero_grad()
        states.append(own.net.state_dict())
    for name, value in states[1].items():
        assert relative(states[0][name].double(), value.double()) < SAME, name
        if value.is_floating_point():
            assert not torch.equal(value, found[0]['online', recipe]['state_dict'][name]), name


def test_what_is_reduced_is_the_plain_networks():
    net = network('squeezed')
    reduced = {name: p.numel() for name, p in net.named_parameters() if p.requires_grad}
    plain = squeeze(copy.deepcopy(net))
    assert reduced == {name: p.numel() for name, p in plain.named_parameters()}


@pytest.mark.parametrize('processes', [2, 4])
def test_the_work_is_even(processes):
    cfg = dict(type='mmpretrain.OREPAResNet', depth=18, base_channels=16, stem_channels=16)
    net = MODELS.build(cfg)
    blocks = {n: m for n, m in net.named_modules() if isinstance(m, GeneratedConv2d)}
    owners = share_out(blocks, processes)
    assert list(owners) == list(blocks)
    loads = [sum(work(blocks[n]) for n in owners if owners[n] == r) for r in range(processes)]
    assert max(loads) <= EVEN * 2 / processes * sum(loads)
    assert min(loads) > 0
