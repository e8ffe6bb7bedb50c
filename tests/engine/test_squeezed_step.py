"""Squeezed training by MMEngine's Runner against training online, from a config."""

import copy
import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from engine.small_training import make_runner
from mmorepa.checkpoints.files import mmengine_loads_weights_only
from mmorepa.convs import ExpandConv2d, OREPAConv2d
from mmorepa.convs.generated import GeneratedConv2d
from mmorepa.engine.squeezed_step import SqueezedTrainingHook, reader_of_all, training_of
from mmorepa.errors import UserError

SAME = 1e-9  # relative, float64
NEAR = 1e-4  # relative, float32, a few steps of a small ResNet-18
LR, DECAY = 0.02, 1e-3

OPTIMIZER = dict(type='SGD', lr=LR, momentum=0.9, weight_decay=DECAY)
MULTIPLIERS = dict(
    norm_decay_mult=0,
    norm_bias_lr_mult=2,
    stem=dict(lr_mult=0.1, decay_mult=0.5),
    stem_scale=dict(lr_mult=0.03),
    scale=dict(lr_mult=0.7, decay_mult=0),
    patterns={'*layer2.0.*': dict(lr_mult=0.5), '*.original.weight': dict(decay_mult=2)},
    custom_keys={'layer3.0': dict(lr_mult=0.25)},
)
#: Options of :func:`trained`, whose training is the same in both modes.
CASES = {
    'plain': {},
    'AdamW': dict(optim=dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01))),
    'multipliers': dict(optim=dict(paramwise_cfg=MULTIPLIERS)),
    'clipped by norm': dict(optim=dict(clip_grad=dict(max_norm=0.1))),
    'clipped by value': dict(optim=dict(clip_grad=dict(type='value', clip_value=1e-3))),
    'accumulated': dict(optim=dict(accumulative_counts=2)),
    'accumulated, a rest': dict(optim=dict(accumulative_counts=3, clip_grad=dict(max_norm=0.1))),
    'kernel_decay': dict(optim=dict(paramwise_cfg=dict(kernel_decay=True, norm_decay_mult=0))),
    'kernel_decay, frozen for a while': dict(
        optim=dict(paramwise_cfg=dict(kernel_decay=True)),
        hooks=[dict(type='mmorepa.FreezeStagesHook', stages=2, end=1)],
    ),
    'kernel_decay, unfrozen by hand': dict(
        optim=dict(paramwise_cfg=dict(kernel_decay=True)), hooks=[dict(type='UnfreezeHook')]
    ),
    'EMA': dict(hooks=[dict(type='EMAHook', momentum=0.3)]),
    'frozen for a while': dict(hooks=[dict(type='mmorepa.FreezeStagesHook', stages=2, end=1)]),
    'frozen': dict(backbone=dict(frozen_stages=1)),
    'frozen, multipliers': dict(
        backbone=dict(frozen_stages=1), optim=dict(paramwise_cfg=MULTIPLIERS)
    ),
    'ExpandNet': dict(block='ExpandNet'),
}


@HOOKS.register_module(force=True)
class UnfreezeHook(Hook):
    """Freezes a layer for an epoch, as somebody does who knows nothing of modes."""

    def before_train_epoch(self, runner):
        runner.model.backbone.layer2.requires_grad_(runner.epoch > 0)


LOGGED = ('loss', 'grad_norm', 'kernel_decay', 'lr')


def runner_of(folder, mode, block='OREPA', backbone=None, optim=None, hooks=(), **options):
    optim = {'constructor': 'OREPAOptimWrapperConstructor', 'optimizer': OPTIMIZER, **(optim or {})}
    reparam = dict(type=block, mode=mode)
    hooks = [*hooks, dict(type='mmorepa.SqueezedTrainingHook')]
    return make_runner(
        folder / mode,
        backbone=dict(backbone or {}, reparam=reparam),
        optim=copy.deepcopy(optim),
        hooks=copy.deepcopy(hooks),
        **options,
    )


def in_float64(runner):
    def widen(module, args):
        return tuple(arg.double() for arg in args)

    runner.model.double().backbone.register_forward_pre_hook(widen)
    return runner


def both(folder, prepared=lambda runner: runner, **options):
    """The Runners of a training online, and of the same one squeezed."""
    runners = []
    # One after the other: initial values are drawn when training begins.
    for mode in ('online', 'squeezed'):
        runners.append(prepared(runner_of(folder, mode, **options)))
        runners[-1].train()
    return runners


def checkpoint_of(runner, name='epoch_2.pth'):
    return torch.load(f'{runner.work_dir}/{name}', weights_only=False)


def logged(runner):
    scalars = runner.message_hub.log_scalars
    found = {name: scalars.get(f'train/{name}') for name in LOGGED}
    return {name: [*map(float, own.data[0])] for name, own in found.items() if own is not None}


def relative(a, b):
    assert a.shape == b.shape
    a, b = a.double(), b.double()
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def assert_near(found, expected, tolerance, name='checkpoint'):
    """Of nested values: equal but for tensors, which are near."""
    if isinstance(expected, torch.Tensor):
        assert relative(found, expected) <= tolerance, name
    elif isinstance(expected, dict):
        assert list(found) == list(expected), name
        for key, value in expected.items():
            assert_near(found[key], value, tolerance, f'{name}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), name
        for i, pair in enumerate(zip(found, expected)):
            assert_near(*pair, tolerance, f'{name}.{i}')
    else:
        assert found == expected, name


def blocks_of(net):
    return [module for module in net.modules() if isinstance(module, GeneratedConv2d)]


@pytest.mark.parametrize(
    'average, reader',
    [
        (dict(), ''),
        (dict(begin_iter=1), 'EMAHook'),
        (dict(begin_epoch=1), 'EMAHook'),
        (dict(update_buffers=True), 'EMAHook'),
    ],
    ids=str,
)
def test_what_reads_all_branches_in_every_step(average, reader, tmp_path):
    runner = runner_of(tmp_path, 'squeezed', hooks=[dict(type='EMAHook', **average)])
    runner.call_hook('before_run')
    assert reader_of_all(runner) == reader


def test_a_follower_in_the_model_reads_all_branches(tmp_path):
    runner = runner_of(tmp_path, 'squeezed')
    assert reader_of_all(runner) == ''
    runner.model.encoder_k = ExponentialMovingAverage(runner.model.backbone)
    assert reader_of_all(runner) == 'encoder_k'


PARTS = ('state_dict', 'optimizer', 'ema_state_dict')


@pytest.mark.parametrize('case', CASES)
def test_equals_online(case, tmp_path):
    runners = both(tmp_path, in_float64, **CASES[case])
    expected, found = map(checkpoint_of, runners)
    for part in PARTS:
        assert (part in found) == (part in expected)
        assert_near(found.get(part), expected.get(part), SAME, part)
    losses = [logged(runner) for runner in runners]
    assert losses[1].keys() == losses[0].keys()
    for name, values in losses[0].items():
        assert losses[1][name] == pytest.approx(values, rel=SAME), name
    assert len(losses[0]['loss']) == 4
    assert not math.isclose(losses[0]['loss'][-1], losses[0]['loss'][0], rel_tol=1e-3)
    assert type(runners[1].optim_wrapper).__name__ == 'SqueezedOptimWrapper'
    assert training_of(runners[0]) is None
    for block in blocks_of(runners[1].model):
        assert block.mode == 'squeezed'
        assert relative(block.weight.detach(), block.squeeze().detach()) < SAME
    assert 'clipped' not in case or 'value' in case or max(losses[0]['grad_norm']) > 0.1
    assert ('kernel_decay' in losses[0]) == ('kernel_decay' in case)


def test_in_float32(tmp_path):
    """As far as float32 lets two orders of the same sums agree."""
    runners = both(tmp_path)
    expected, found = map(checkpoint_of, runners)
    assert_near(found['state_dict'], expected['state_dict'], NEAR)
    assert logged(runners[1])['loss'] == pytest.approx(logged(runners[0])['loss'], rel=NEAR)


@pytest.mark.parametrize('paramwise', [{}, MULTIPLIERS, dict(MULTIPLIERS, kernel_decay=True)])
@pytest.mark.parametrize('frozen', [False, True], ids=['', 'frozen'])
def test_rates_and_decays(paramwise, frozen):
    """Every parameter of the branches has those of online mode, and the kernels have none."""
    found = []
    for mode in ('online', 'squeezed'):
        torch.manual_seed(0)
        net = nn.Sequential()
        net.conv1 = OREPAConv2d(3, 4, 7, bias=False, mode=mode)
        net.bn1 = nn.BatchNorm2d(4)
        for name in ('layer2', 'layer3'):
            conv = OREPAConv2d(4, 4, 3, mode=mode)
            net.add_module(name, nn.Sequential(conv, nn.GroupNorm(2, 4)))
        net.expanded = ExpandConv2d(4, 4, 3, bias=False, mode=mode)
        if frozen:
            net.layer3.requires_grad_(False)
        wrapper = build_optim_wrapper(
            net,
            dict(
                constructor='OREPAOptimWrapperConstructor',
                optimizer=OPTIMIZER,
                paramwise_cfg=copy.deepcopy(paramwise),
            ),
        )
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        found.append([])
        for group in wrapper.optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != 'params'}
            found[-1].append(([names[id(p)] for p in group['params']], options))
        leaves = {name for name in names.values() if name.endswith(('0.weight', 'conv1.weight'))}
        assert not leaves & {name for group, _ in found[-1] for name in group}
        assert [b.weight.requires_grad for b in blocks_of(net)] == [True, True, not frozen, True]
        if mode == 'squeezed':
            assert not any(p.requires_grad for b in blocks_of(net) for p in b.kernel.parameters())
    assert found[0] == found[1]


class TestAmp:
    @pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
    @pytest.mark.parametrize('clip', [None, dict(max_norm=0.1)], ids=['', 'clipped'])
    def test_equals_online(self, dtype, clip, tmp_path):
        optim = dict(
            type='mmorepa.CPUAmpOptimWrapper',
            dtype=dtype,
            loss_scale=dict(init_scale=2.0**8, growth_interval=2),
            clip_grad=clip,
            accumulative_counts=2,
        )
        runners = both(tmp_path, optim=optim)
        expected, found = map(checkpoint_of, runners)
        assert_near(found['state_dict'], expected['state_dict'], NEAR)
        assert found['optimizer']['loss_scaler'] == expected['optimizer']['loss_scaler']
        assert found['optimizer']['loss_scaler']['scale'] == 2.0**9
        assert logged(runners[1])['loss'] == pytest.approx(logged(runners[0])['loss'], rel=NEAR)
        assert type(runners[1].optim_wrapper).__name__ == 'SqueezedCPUAmpOptimWrapper'

    def test_a_step_that_is_skipped(self, tmp_path):
        optim = dict(
            type='mmorepa.CPUAmpOptimWrapper', dtype='float16', loss_scale=dict(init_scale=2.0**60)
        )
        before = {}

        class Before(Hook):
            def before_train(self, runner):
                before.update(copy.deepcopy(dict(runner.model.named_parameters())))

        cfg = dict(by_epoch=True, max_epochs=1)
        runner = runner_of(tmp_path, 'squeezed', optim=optim, train_cfg=cfg, hooks=[Before()])
        runner.train()
        checkpoint = checkpoint_of(runner, 'epoch_1.pth')
        assert checkpoint['optimizer']['loss_scaler']['scale'] == 2.0**58
        for name, parameter in runner.model.named_parameters():
            assert torch.equal(parameter, before[name]), name


class Poison(Hook):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            with torch.no_grad():
                runner.model.get_parameter(self.name).view(-1)[0] = self.value


@pytest.mark.parametrize(
    'name, value, said',
    [
        ('backbone.layer2.0.conv1.kernel.average.scale', math.nan, 'layer2.0.conv1 (kernel.aver'),
        ('backbone.conv1.kernel.0.prior.weight', math.inf, 'backbone.conv1 (kernel.0.prior'),
        ('head.fc.weight', math.inf, 'head.fc (weight'),
    ],
)
def test_a_loss_that_is_not_finite(name, value, said, tmp_path):
    lines = []
    for mode in ('online', 'squeezed'):
        runner = runner_of(tmp_path, mode)
        runner.register_hook(Poison(name, value))
        with pytest.raises(UserError) as error:
            runner.train()
        lines.append(str(error.value))
    assert said in lines[0]
    assert lines[1].partition(':')[2] == lines[0].partition(':')[2]
    assert '\n' not in lines[1]


ALL = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=-1))
EMA = dict(type='EMAHook', momentum=0.3)
#: The first epoch ends in the middle of an accumulation.
ACCUMULATED = dict(
    optim=dict(accumulative_counts=3), hooks=[dict(type='mmorepa.AccumulatedGradientsHook')]
)


def whole_and_resumed(folder, first, second, **options):
    """The last checkpoints of a training, and of one that goes on from its first; the latter."""
    whole = in_float64(runner_of(folder / 'whole', first, default_hooks=ALL, **options))
    whole.train()
    path = f'{whole.work_dir}/epoch_1.pth'
    resumed = runner_of(folder / 'resumed', second, resume=True, load_from=path, **options)
    with mmengine_loads_weights_only():
        in_float64(resumed).train()
    assert len(logged(resumed)['loss']) == len(logged(whole)['loss']) == 4
    return checkpoint_of(whole), checkpoint_of(resumed), resumed


class TestResume:
    @pytest.mark.parametrize('first', ['online', 'squeezed'])
    @pytest.mark.parametrize('second', ['online', 'squeezed'])
    def test_goes_on_as_it_would_have(self, first, second, tmp_path):
        """Bit for bit in its own mode; in the other but for rounding."""
        expected, found, _ = whole_and_resumed(tmp_path, first, second, hooks=[EMA])
        for part in PARTS:
            assert_near(found[part], expected[part], 0 if first == second else SAME, part)

    def test_in_the_middle_of_an_accumulation(self, tmp_path):
        expected, found, _ = whole_and_resumed(tmp_path, 'squeezed', 'squeezed', **ACCUMULATED)
        for part in PARTS[:2]:
            assert_near(found[part], expected[part], 0, part)
        gradients = torch.load(tmp_path / 'whole/squeezed/epoch_1.pth', weights_only=False)
        gradients = gradients['accumulated_gradients']
        assert 'backbone.conv1.weight' in gradients
        assert not any('kernel' in name for name in gradients)

    def test_gradients_of_branches_go_on_as_such(self, tmp_path):
        """Those of kernels that come later are added to them."""
        expected, found, _ = whole_and_resumed(tmp_path, 'online', 'squeezed', **ACCUMULATED)
        assert_near(found['state_dict'], expected['state_dict'], SAME)

    def test_gradients_of_kernels_begin_again_online(self, tmp_path):
        """And it says so."""
        seen = []

        class Warnings(Hook):
            priority = 'VERY_HIGH'

            def before_train(self, runner):
                runner.logger.warning = seen.append

        options = dict(ACCUMULATED, hooks=[*ACCUMULATED['hooks'], Warnings()])
        whole_and_resumed(tmp_path, 'squeezed', 'online', **options)
        assert sum('accumulated gradients of another mode' in line for line in seen) == 1


def test_fsdp_is_refused():
    """As wrapped parameters lie spread over the processes."""

    class Spread(FullyShardedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self._modules['_fsdp_wrapped_module'] = module

    cfg = dict(constructor='OREPAOptimWrapperConstructor', optimizer=OPTIMIZER)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), OREPAConv2d(3, 3, 3, mode='squeezed'))
    build_optim_wrapper(net, cfg)
    with pytest.raises(UserError) as error:
        build_optim_wrapper(nn.Sequential(Spread(nn.Conv2d(3, 3, 1)), net), cfg)
    assert str(error.value).startswith("mode='squeezed' does not go with FSDP")
    assert '\n' not in str(error.value)


def test_the_hook_comes_before_whatever_reads_the_branches(tmp_path, monkeypatch):
    """Each checkpoint and each validation; in one process it has nothing to do."""
    happened = []
    monkeypatch.setattr(
        'mmorepa.convs.SqueezedTraining.consolidate', lambda *args: happened.append('together')
    )

    class Notes(Hook):
        priority = 'LOWEST'

        def before_save_checkpoint(self, runner, checkpoint):
            happened.append('saved')

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            happened.append('step')

    runner = runner_of(
        tmp_path,
        'squeezed',
        hooks=[Notes()],
        train_cfg=dict(by_epoch=False, max_iters=4),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False)),
    )
    runner.train()
    saved = [happened[i - 1] for i, what in enumerate(happened) if what == 'saved']
    assert saved == ['together'] * 2
    assert happened.count('step') == 4
    assert happened[-1] == 'together'
    hook = next(hook for hook in runner.hooks if isinstance(hook, SqueezedTrainingHook))
    happened.clear()
    hook.before_val(runner)
    hook.after_train_epoch(runner)
    assert happened == ['together'] * 2
    assert not training_of(runner).shard
