"""Blocks under what wraps, transforms or traces modules."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune

from convs.cases import EVERY, GENERATED, image, label, new_block, plain
from mmorepa.convs import OREPAConv2d, TweakedOREPAConv2d
from mmorepa.errors import UserError

SAME = dict(rtol=1e-9, atol=1e-12)  # float64

every = pytest.mark.parametrize('case', EVERY, ids=label)
# BatchNorms in training write statistics, which torch.func refuses for nn.BatchNorm2d as well.
each_form = pytest.mark.parametrize(
    'case, training',
    [(case, training) for case in EVERY for training in (True, False) if case[1] or not training],
    ids=lambda value: label(value) if isinstance(value, tuple) else ['eval', 'training'][value],
)


def in_double(case, training) -> nn.Module:
    return new_block(*case).double().train(training)


def trained(block) -> dict[str, torch.Tensor]:
    return {name: p for name, p in block.named_parameters() if p.requires_grad}


class TestTransforms:
    @each_form
    def test_grad(self, case, training):
        block, x = in_double(case, training), image().double()
        parameters = trained(block)

        def loss(values):
            return functional_call(block, values, (x,)).square().mean()

        found = grad(loss)({name: p.detach() for name, p in parameters.items()})
        block(x).square().mean().backward()
        assert parameters
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name], parameter.grad, **SAME)

    @each_form
    def test_grad_of_the_image(self, case, training):
        block, x = in_double(case, training), image().double().requires_grad_()
        found = grad(lambda image: block(image).square().mean())(x.detach())
        block(x).square().mean().backward()
        torch.testing.assert_close(found, x.grad, **SAME)

    @each_form
    def test_vmap_over_images(self, case, training):
        block, x = in_double(case, training), image(3).double()
        torch.testing.assert_close(vmap(lambda one: block(one[None])[0])(x), block(x), **SAME)

    @pytest.mark.parametrize('name', GENERATED)
    def test_gradients_per_image(self, name):
        """What differential privacy and influence functions ask for."""
        block, x = in_double((name, 'online'), True), image(3).double()
        values = {key: p.detach() for key, p in block.named_parameters()}

        def loss(values, one):
            return functional_call(block, values, (one[None],)).square().mean()

        found = vmap(grad(loss), in_dims=(None, 0))(values, x)
        for i, one in enumerate(x):
            block.zero_grad()
            block(one[None]).square().mean().backward()
            for key, parameter in block.named_parameters():
                torch.testing.assert_close(found[key][i], parameter.grad, **SAME)

    @pytest.mark.parametrize('name', GENERATED)
    def test_vmap_over_ensembles(self, name):
        blocks = [in_double((name, 'online'), True) for _ in range(3)]
        for i, block in enumerate(blocks):
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.add_(0.1 * i)
        values, buffers = torch.func.stack_module_state(blocks)
        x = image().double()

        def run(values, buffers):
            return functional_call(blocks[0], (values, buffers), (x,))

        for found, block in zip(vmap(run)(values, buffers), blocks):
            torch.testing.assert_close(found, block(x), **SAME)

    @each_form
    def test_jvp(self, case, training):
        block, x = in_double(case, training), image().double()
        values = {name: p.detach() for name, p in trained(block).items()}
        tangents = {name: torch.randn_like(value) for name, value in values.items()}

        def run(values):
            return functional_call(block, values, (x,))

        out, found = jvp(run, (values,), (tangents,))
        step = 1e-6
        ahead = run({name: value + step * tangents[name] for name, value in values.items()})
        behind = run({name: value - step * tangents[name] for name, value in values.items()})
        torch.testing.assert_close(out, block(x), **SAME)
        expected = (ahead - behind) / (2 * step)
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()

    @each_form
    def test_functional_call(self, case, training):
        block, x = in_double(case, training), image().double()
        before = copy.deepcopy(block)(x)
        other = copy.deepcopy(block)
        with torch.no_grad():
            for parameter in trained(other).values():
                parameter.mul_(0.5)
        values = {name: p.detach().clone() for name, p in trained(other).items()}
        held = copy.deepcopy(values)
        for _ in range(2):
            found = functional_call(block, values, (x,))
            assert all(torch.equal(values[name], held[name]) for name in held)
            torch.testing.assert_close(block(x), before, **SAME)
        if case[1] == 'squeezed':
            conv = plain(block).double()
            with torch.no_grad():
                conv.weight.copy_(values['weight'])
                conv.bias.copy_(values['bias'])
            other = conv
        torch.testing.assert_close(found, other(x), **SAME)

    @pytest.mark.parametrize('name', GENERATED)
    def test_functional_call_with_other_branches(self, name):
        """In squeezed mode too: there the kernel is what these amount to."""
        block, x = in_double((name, 'squeezed'), False), image().double()
        before = block(x).detach()
        other = copy.deepcopy(block)
        with torch.no_grad():
            for parameter in other.kernel.parameters():
                parameter.mul_(0.5)
        values = {f'kernel.{key}': p.detach() for key, p in other.kernel.named_parameters()}
        found = functional_call(block, values, (x,))
        torch.testing.assert_close(found, other(x), **SAME)
        torch.testing.assert_close(block(x), before, **SAME)

    @pytest.mark.parametrize('name', GENERATED)
    def test_functional_call_writes_to_no_leaf_that_is_lent(self, name):
        """Though the branches have changed since the block was asked for its weight."""
        block, x = in_double((name, 'squeezed'), False), image().double()
        with torch.no_grad():
            for parameter in block.kernel.parameters():
                parameter.mul_(0.5)
        expected = copy.deepcopy(block)(x)
        lent = torch.randn_like(block._parameters['weight'])
        held = lent.clone()
        found = functional_call(block, dict(weight=lent), (x,))
        assert torch.equal(lent, held)
        torch.testing.assert_close(found, block._conv_forward(x, held, block.bias), **SAME)
        torch.testing.assert_close(block(x), expected, **SAME)

    @each_form
    def test_forward_mode_without_torch_func(self, case, training):
        block, x = in_double(case, training), image().double()
        values = {name: p.detach() for name, p in trained(block).items()}
        tangents = {name: torch.randn_like(value) for name, value in values.items()}

        def run(values):
            return functional_call(block, values, (x,))

        _, expected = jvp(run, (values,), (tangents,))
        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(v, tangents[n]) for n, v in values.items()}
            found = forward_ad.unpack_dual(run(duals)).tangent
        torch.testing.assert_close(found, expected, **SAME)


class TestTracing:
    @every
    @pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
    @pytest.mark.parametrize('with_grad', [True, False], ids=['grad', 'no_grad'])
    def test_jit_trace_passes_its_own_check(self, case, training, with_grad):
        block = new_block(*case).train(training)
        with torch.set_grad_enabled(with_grad):
            # What a BatchNorm in training has seen, the second of the two runs sees as well.
            traced = torch.jit.trace(block, image(), check_trace=True, strict=True)
            other = torch.randn(3, *image().shape[1:])
            state = copy.deepcopy(block.state_dict())
            expected = block(other)
            block.load_state_dict(state)
            torch.testing.assert_close(traced(other), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize('mode', ['online', 'squeezed', 'offline'])
    def test_a_trace_is_of_the_weights_at_hand(self, mode):
        """Also where a kernel was held before."""
        block = new_block('kxk', mode).eval()
        with torch.no_grad():
            block(image())
            for parameter in block.kernel.parameters():
                parameter.mul_(0.5)
            traced = torch.jit.trace(block, image())
        torch.testing.assert_close(traced(image()), plain(block)(image()))

    @pytest.mark.parametrize('name', GENERATED)
    def test_a_trace_shares_the_branches(self, name):
        """The kernel is generated in it, and follows them."""
        block = new_block(name, 'online').eval()
        traced = torch.jit.trace(block, image())
        with torch.no_grad():
            before = traced(image())
            for parameter in block.kernel.parameters():
                parameter.mul_(0.5)
            found = traced(image())
            torch.testing.assert_close(found, block(image()), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, before)

    @every
    def test_fx_takes_a_block_for_one_layer(self, case):
        """As it takes an ``nn.Conv2d``, so that what it makes follows the branches."""
        model = nn.Sequential(new_block(*case), nn.ReLU()).eval()
        traced = torch.fx.symbolic_trace(model)
        layers = [node.target for node in traced.graph.nodes if node.op == 'call_module']
        assert layers == ['0', '1']
        for _ in range(2):
            torch.testing.assert_close(traced(image()), model(image()))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.5)


def replica_of(network: nn.Module) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` makes for a device.

    That one wants a GPU; this does the same with copies where they are.
    """
    copies = {name: p.clone() for name, p in network.named_parameters()}
    replicas = {}
    for name, module in network.named_modules():
        replica = replicas[name] = module._replicate_for_data_parallel()
        replica._former_parameters = {}
    for name, module in network.named_modules():
        prefix = f'{name}.' if name else ''
        for key in module._modules:
            setattr(replicas[name], key, replicas[prefix + key])
        for key, parameter in module._parameters.items():
            if parameter is None:
                replicas[name]._parameters[key] = None
            else:
                setattr(replicas[name], key, copies[prefix + key])
                replicas[name]._former_parameters[key] = copies[prefix + key]
        for key, buffer in module._buffers.items():
            if buffer is None:
                replicas[name]._buffers[key] = None
            else:
                setattr(replicas[name], key, buffer.clone())
    return replicas['']


class TestReplicas:
    @every
    @pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
    def test_data_parallel(self, case, training):
        model = nn.Sequential(new_block(*case), nn.ReLU()).train(training)
        other = copy.deepcopy(model)
        before = model[0].weight.detach().clone()
        out, expected = replica_of(model)(image()), other(image())
        if not training or case[1]:
            assert torch.equal(model[0].weight, before)
        torch.testing.assert_close(out, expected)
        out.square().mean().backward()
        expected.square().mean().backward()
        assert trained(model)
        for name, parameter in trained(other).items():
            torch.testing.assert_close(trained(model)[name].grad, parameter.grad)

    @pytest.mark.parametrize('mode', ['online', 'squeezed', 'offline'])
    @pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
    def test_weights_that_were_just_loaded(self, mode, training):
        """Parameters are copied before any block is asked for its weight."""
        source = new_block('kxk', mode)
        model = nn.Sequential(OREPAConv2d(4, 6, 3, padding=1, mode=mode)).train(training)
        model(image())
        model.load_state_dict({f'0.{key}': value for key, value in source.state_dict().items()})
        replica = replica_of(model)
        torch.testing.assert_close(replica(image()), source(image()))

    @pytest.mark.parametrize('name', GENERATED)
    def test_a_replica_has_a_weight(self, name):
        model = new_block(name, 'online')
        replica = replica_of(model)
        torch.testing.assert_close(replica.weight, model.weight)
        torch.testing.assert_close(replica.squeeze(), model.squeeze())


@pytest.fixture(scope='module')
def group(tmp_path_factory):
    """A group of this process alone."""
    path = tmp_path_factory.mktemp('group') / 'store'
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures('group')
class TestDistributed:
    @every
    def test_broadcast_of_buffers_leaves_the_kernel_alone(self, case):
        """It writes to every buffer, constants included, before each forward pass."""
        model = nn.Sequential(new_block(*case), nn.ReLU())
        alone = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model, broadcast_buffers=True)
        for net in (wrapped, alone):
            net(image()).square().mean().backward()
        for name, parameter in trained(alone).items():
            torch.testing.assert_close(trained(model)[name].grad, parameter.grad)
        wrapped.eval(), alone.eval()
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(wrapped(image()), alone(image()))
        assert torch.equal(model[0].weight, alone[0].weight)

    @pytest.mark.parametrize('case', [case for case in EVERY if case[1]], ids=label)
    def test_broadcast_of_buffers_between_two_passes(self, case):
        """While autograd holds on to what the first has used."""
        model = new_block(*case)
        alone = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model, broadcast_buffers=True)
        for net in (wrapped, alone):
            sum(net(image(n)).square().mean() for n in (1, 2)).backward()
        for name, parameter in trained(alone).items():
            torch.testing.assert_close(trained(model)[name].grad, parameter.grad)

    def test_broadcast_between_two_passes_of_a_tweaked_kernel(self):
        wrapped = DistributedDataParallel(TweakedOREPAConv2d(4, 6, 3))
        sum(wrapped(image(n)).square().mean() for n in (1, 2)).backward()
        assert wrapped.module.weight.grad.abs().max() > 0

    @pytest.mark.parametrize('case', [case for case in EVERY if case[1] != 'squeezed'], ids=label)
    @pytest.mark.parametrize('original', [False, True], ids=['flat', 'original'])
    def test_fsdp(self, case, original):
        """Parameters are pieces of one long vector, with views or without."""
        model = nn.Sequential(new_block(*case), nn.BatchNorm2d(6))
        alone = copy.deepcopy(model)
        wrapped = FullyShardedDataParallel(
            model, device_id=torch.device('cpu'), use_orig_params=original
        )
        for _ in range(2):
            losses = [net.train()(image()).square().mean() for net in (wrapped, alone)]
            torch.testing.assert_close(*losses)
            for net, loss in zip((wrapped, alone), losses):
                loss.backward()
                optimizer = torch.optim.SGD(net.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                for _ in range(2):
                    torch.testing.assert_close(wrapped.eval()(image()), alone.eval()(image()))

    @pytest.mark.parametrize('name', GENERATED)
    @pytest.mark.parametrize('original', [False, True], ids=['flat', 'original'])
    def test_fsdp_takes_the_leaf_away(self, name, original):
        """It would train the kernel, and the branches would not follow."""
        block = new_block(name, 'squeezed')
        branches = list(block.kernel.parameters())
        with pytest.raises(UserError, match="train it in mode='online'"):
            wrapped = FullyShardedDataParallel(
                nn.Sequential(block),
                device_id=torch.device('cpu'),
                use_orig_params=original,
                ignored_states=branches,
            )
            wrapped(image())


def branch(block) -> nn.Module:
    """A branch with a weight."""
    kernel = block.kernel
    kernel = kernel[0] if isinstance(kernel, nn.Sequential) else kernel
    return kernel.original


def weight_norm(module):
    nn.utils.weight_norm(module, 'weight')


def new_weight_norm(module):
    parametrizations.weight_norm(module, 'weight')


def spectral_norm(module):
    nn.utils.spectral_norm(module, 'weight')


def new_spectral_norm(module):
    parametrizations.spectral_norm(module, 'weight')


def pruned(module):
    prune.l1_unstructured(module, 'weight', amount=0.5)


def pruned_by_channel(module):
    prune.ln_structured(module, 'weight', amount=0.5, n=2, dim=0)


REWRITES = [weight_norm, new_weight_norm, spectral_norm, new_spectral_norm, pruned]
REWRITES += [pruned_by_channel]


class TestRewrittenBranches:
    """Parameters that follow from others themselves."""

    @pytest.mark.parametrize('rewrite', REWRITES, ids=lambda f: f.__name__)
    @pytest.mark.parametrize('mode', ['online', 'offline'])
    @pytest.mark.parametrize('name', ['pointwise', 'kxk', 'stem'])
    def test_the_kernel_follows_and_gradients_arrive(self, name, mode, rewrite):
        block = new_block(name, mode).double()
        one = branch(block)
        before = {key for key, _ in block.named_parameters()}
        rewrite(one)
        own = {key: p for key, p in block.named_parameters() if key not in before}
        assert own
        # Power iterations of the spectral norm go on in each pass.
        block.eval()
        block.kernel.eval()
        x = image().double()
        out = block(x)
        expected = block._conv_forward(x, block.squeeze(), block.bias)
        torch.testing.assert_close(out, expected, **SAME)
        out.square().mean().backward()
        for key, parameter in own.items():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        with torch.no_grad():
            held = block.weight.clone()
            for parameter in own.values():
                parameter.copy_(torch.randn_like(parameter))
            block.zero_grad()
            after = block.weight.clone()
            torch.testing.assert_close(block(x), block._conv_forward(x, after, block.bias))
        assert not torch.allclose(held, after)

    @pytest.mark.parametrize('rewrite', REWRITES, ids=lambda f: f.__name__)
    def test_in_training(self, rewrite):
        """Where old hooks make the weight anew in each call of the branch."""
        block = new_block('kxk', 'online')
        rewrite(branch(block))
        optimizer = torch.optim.SGD(block.parameters(), 0.1)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = block(image()).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)

    def test_a_pruned_weight_stays_pruned(self):
        block = new_block('kxk', 'online')
        one = branch(block)
        prune.l1_unstructured(one, 'weight', amount=0.5)
        zeros = one.weight_mask == 0
        block.kernel.requires_grad_(True)
        for other in block.kernel.children():
            if other is not one:
                nn.init.zeros_(other.scale)
        nn.init.ones_(one.scale)
        with torch.no_grad():
            kernel = block.eval().weight
        rows = kernel.permute(0, 2, 3, 1).flatten(1, 2)
        assert (rows[zeros] == 0).all() and (rows[~zeros] != 0).all()

    def test_made_permanent(self):
        block = new_block('kxk', 'online').eval()
        prune.l1_unstructured(branch(block), 'weight', amount=0.5)
        with torch.no_grad():
            before = block(image())
            prune.remove(branch(block), 'weight')
            torch.testing.assert_close(block(image()), before)

    @pytest.mark.parametrize('rewrite', REWRITES, ids=lambda f: f.__name__)
    @pytest.mark.parametrize('case', [case for case in EVERY if case[1] != 'offline'], ids=label)
    @pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
    def test_the_weight_of_a_block_itself_is_not_rewritten(self, case, training, rewrite):
        """It is no parameter; nor would its branches follow. Whatever says so, it is said."""
        block = new_block(*case).train(training)
        with pytest.raises((UserError, TypeError, KeyError, ValueError)):
            rewrite(block)
            block(image())
