"""Training stops at a loss that is not finite, and says where that began."""

import copy
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMFullyShardedDataParallel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from engine.small_training import CHECKPOINT, Images, line_of_two, make_runner
from mmorepa import OREPAConv2d
from mmorepa.convs.finite import fault_of, first_fault
from mmorepa.engine import NonFiniteHook
from mmorepa.errors import UserError


def stopped(runner):
    """The line with which training stops."""
    with pytest.raises(UserError) as info:
        runner.train()
    assert '\n' not in str(info.value)
    return str(info.value)


def poison(name, value, index=0):
    """A hook that writes a value into a parameter before the second iteration."""

    class Poison(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                with torch.no_grad():
                    runner.model.get_parameter(name).view(-1)[index] = value

    return Poison()


SCALE = 'backbone.layer2.0.conv1.kernel.average.scale'


class TestWhatIsNamed:
    @pytest.mark.parametrize(
        'name, value, named',
        [
            (SCALE, math.nan, r'backbone.layer2.0.conv1 \(kernel.average.scale, 1 of 8 values\)'),
            (SCALE, math.inf, r'backbone.layer2.0.conv1 \(kernel.average.scale, 1 of 8 values\)'),
            ('backbone.conv1.kernel.0.prior.weight', math.inf, r'backbone.conv1 \(kernel.0.prior'),
            ('head.fc.weight', -math.inf, r'head.fc \(weight, 1 of 96 values\)'),
            ('backbone.layer1.1.bn2.bias', math.nan, r'backbone.layer1.1.bn2 \(bias, 1 of 4'),
        ],
        ids=['scale NaN', 'scale inf', 'stem', 'head', 'norm'],
    )
    def test_first_layer_whose_kernel_is_not_finite(self, name, value, named, tmp_path):
        line = stopped(make_runner(tmp_path / 'a', hooks=[poison(name, value)]))
        assert re.match(
            rf'the loss is (nan|inf) in iteration 2: first layer with a kernel that is not finite '
            rf'is {named}',
            line,
        ), line
        assert 'lower the learning rate' in line

    def test_kernel_that_overflows_before_its_parameters(self, tmp_path):
        hooks = [poison(SCALE, 3e38), poison(SCALE.replace('scale', 'weight'), 1e3)]
        line = stopped(make_runner(tmp_path / 'a', hooks=hooks))
        assert re.search(
            r'is backbone.layer2.0.conv1 \(the kernel generated of finite parameters, \d+ of 288 '
            r'values\);',
            line,
        ), line

    def test_the_first_in_the_order_in_which_layers_run(self, tmp_path):
        """The model holds its modules in another order here: the head before the backbone."""
        runner = make_runner(
            tmp_path / 'a', hooks=[poison('head.fc.bias', math.nan), poison(SCALE, math.nan)]
        )
        order = dict(runner.model.named_children())
        for name in sorted(order, reverse=True):
            runner.model._modules[name] = runner.model._modules.pop(name)
        assert next(runner.model.named_children())[0] == 'neck'
        assert 'is backbone.layer2.0.conv1 (' in stopped(runner)

    def test_a_learning_rate_that_diverges(self, tmp_path):
        line = stopped(make_runner(tmp_path / 'a', lr=1e30))
        assert re.match(r'the loss is nan in iteration 2: first layer with a kernel', line), line
        # Of what the same step has made infinite, the stem runs first.
        assert 'is backbone.conv1 (' in line

    def test_an_image_with_a_nan(self, tmp_path):
        line = stopped(make_runner(tmp_path / 'a', Images(faulty=(5, 6))))
        assert line == (
            'the loss is nan in iteration 2: all kernels are finite, the input is not '
            '(images/5.png, images/6.png); check the data'
        )

    def test_first_module_whose_output_is_not_finite(self, tmp_path):
        class Overflow(Hook):
            def before_train(self, runner):
                norm = runner.model.backbone.layer3[1].bn1
                norm.register_forward_hook(lambda module, args, output: output * math.inf)

        line = stopped(make_runner(tmp_path / 'a', hooks=[Overflow()]))
        assert 'all kernels are finite, the first module with an output that is not' in line
        assert 'is backbone.layer3.1.bn1;' in line

    def test_the_loss_alone(self, tmp_path):
        runner = make_runner(tmp_path / 'a')
        runner.model.head.loss_module.loss_weight = math.inf
        line = stopped(runner)
        assert line == (
            'the loss is inf in iteration 1: all kernels and outputs are finite, the loss alone '
            'is not (loss); check learning rate, input and targets'
        )

    @pytest.mark.parametrize('reparam', [None, 'DBB', dict(type='OREPA', mode='offline')], ids=str)
    def test_other_blocks_and_the_plain_network(self, reparam, tmp_path):
        name = {None: 'weight', 'DBB': 'original.weight'}.get(
            reparam if isinstance(reparam, (str, type(None))) else 0, 'kernel.average.scale'
        )
        hook = poison(f'backbone.layer2.0.conv1.{name}', math.inf)
        line = stopped(make_runner(tmp_path / 'a', hooks=[hook], backbone=dict(reparam=reparam)))
        assert f'is backbone.layer2.0.conv1 ({name}, 1 of' in line


def test_statistics_count_and_masks_do_not():
    norm = nn.BatchNorm2d(4)
    assert fault_of(norm) == ''
    norm.running_var[2] = math.inf
    assert fault_of(norm) == 'running_var, 1 of 4 values'
    mask = nn.Identity()
    mask.register_buffer('mask', torch.full((2, 2), -math.inf))
    assert first_fault(nn.Sequential(mask, nn.Linear(2, 2))) == ''


class TestTraining:
    def test_ordinary_training_runs_to_its_end(self, tmp_path):
        runner = make_runner(tmp_path / 'a')
        runner.train()
        assert (tmp_path / 'a' / 'epoch_2.pth').exists()
        # Nothing stays on the model.
        assert not runner.model._forward_hooks
        copy.deepcopy(runner.model)

    def test_the_line_is_in_the_log(self, tmp_path):
        line = stopped(make_runner(tmp_path / 'a', Images(faulty=(5,))))
        for handler in MMLogger.get_current_instance().handlers:
            handler.flush()
        (log,) = (tmp_path / 'a').glob('*/*.log')
        assert line in log.read_text()

    def test_the_step_is_not_taken(self, tmp_path):
        before = {}

        class Note(Hook):
            def before_train(self, runner):
                before.update(copy.deepcopy(dict(runner.model.named_parameters())))

        runner = make_runner(tmp_path / 'a', Images(faulty=(0,)), hooks=[Note()])
        stopped(runner)
        for name, parameter in runner.model.named_parameters():
            assert torch.equal(parameter, before[name]), name

    def test_accumulated_gradients(self, tmp_path):
        optim = dict(accumulative_counts=2)
        line = stopped(make_runner(tmp_path / 'a', Images(faulty=(5,)), optim=optim))
        assert 'in iteration 2' in line

    @pytest.mark.parametrize('by_epoch', [True, False], ids=['epoch', 'iter'])
    def test_a_good_checkpoint_is_not_replaced(self, by_epoch, tmp_path):
        """The last step before the second checkpoint makes the network infinite."""

        class Step(Hook):
            priority = 'VERY_HIGH'

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                if runner.iter == 3:
                    with torch.no_grad():
                        runner.model.get_parameter(SCALE)[1] = math.inf

        ways = {
            True: dict(),
            False: dict(
                train_cfg=dict(by_epoch=False, max_iters=4),
                default_hooks=dict(checkpoint={**CHECKPOINT, 'by_epoch': False, 'interval': 2}),
            ),
        }
        runner = make_runner(tmp_path / 'a', hooks=[Step()], **ways[by_epoch])
        line = stopped(runner)
        assert line.startswith('the network is not finite any more and is not saved')
        assert 'backbone.layer2.0.conv1 (kernel.average.scale, 1 of 8 values)' in line
        good = 'epoch_1.pth' if by_epoch else 'iter_2.pth'
        assert [path.name for path in (tmp_path / 'a').glob('*.pth')] == [good]
        assert (tmp_path / 'a' / 'last_checkpoint').read_text().endswith(good)

    def test_nobody_else_saves_it_either(self, tmp_path):
        runner = make_runner(tmp_path / 'a')
        runner.train()
        with torch.no_grad():
            runner.model.get_parameter(SCALE)[0] = math.nan
        with pytest.raises(UserError, match='is not saved'):
            runner.save_checkpoint(str(tmp_path), 'mine.pth')
        assert not (tmp_path / 'mine.pth').exists()

    def test_beside_the_ema_hook(self, tmp_path):
        hooks = [EMAHook(ema_type='ExponentialMovingAverage')]
        stopped(make_runner(tmp_path / 'a', Images(faulty=(5,)), hooks=hooks))
        make_runner(tmp_path / 'b', hooks=hooks).train()
        assert (tmp_path / 'b' / 'epoch_2.pth').exists()


@pytest.fixture
def amp_on_the_cpu(monkeypatch):
    """MMEngine's wrapper asks for a GPU; torch does not."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))


@pytest.mark.usefixtures('amp_on_the_cpu')
class TestMixedPrecision:
    AMP = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic')

    def test_infinite_gradients_are_no_fault(self, tmp_path):
        """The scale is far too large: gradients overflow, steps are skipped, the loss is fine."""
        scale = dict(init_scale=3.4e38, backoff_factor=1e-10)
        runner = make_runner(tmp_path / 'a', optim={**self.AMP, 'loss_scale': scale})
        runner.model.head.loss_module.loss_weight = 100.0
        runner.train()
        assert runner.optim_wrapper.loss_scaler.get_scale() < 1e30
        assert (tmp_path / 'a' / 'epoch_2.pth').exists()

    def test_a_loss_that_is_not_finite_is_one(self, tmp_path):
        hooks = [poison(SCALE, math.nan)]
        line = stopped(make_runner(tmp_path / 'a', optim=self.AMP, hooks=hooks))
        assert 'is backbone.layer2.0.conv1 (kernel.average.scale' in line


class Small(BaseModel):
    """As little as torch.compile has to look at."""

    def __init__(self):
        super().__init__()
        self.conv = OREPAConv2d(3, 2, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.conv(torch.stack(inputs)).square().mean())


def test_compiled_training_step(tmp_path):
    """By torch.compile's frontend; what a backend makes of it does not matter here."""
    runner = make_runner(
        tmp_path / 'a',
        model=Small(),
        hooks=[poison('conv.kernel.average.scale', math.nan)],
        cfg=dict(compile=dict(backend='eager')),
    )
    line = stopped(runner)
    assert 'in iteration 2' in line
    assert 'is conv (kernel.average.scale, 1 of 2 values)' in line


class Losses(BaseModel):
    """Losses as a detector has them: several, some of them a list."""

    def __init__(self, **losses):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.losses = losses

    def forward(self, inputs, data_samples=None, mode='tensor'):
        def tensor(value):
            return [tensor(v) for v in value] if isinstance(value, list) else self.weight * value

        return {name: tensor(value) for name, value in self.losses.items()}


@pytest.mark.parametrize(
    'losses, named',
    [
        (dict(loss_cls=[1.0, math.inf, 2.0], loss_bbox=1.0), 'loss_cls'),
        (dict(loss_cls=[1.0, 2.0], loss_bbox=math.nan, loss_mask=math.inf), 'loss_bbox, loss_mask'),
        (dict(loss_cls=2e38, loss_bbox=2e38), ''),
    ],
    ids=['list', 'several', 'sum'],
)
def test_losses_of_a_detector(losses, named, tmp_path):
    line = stopped(make_runner(tmp_path / 'a', model=Losses(**losses, acc=math.nan)))
    assert f'the loss alone is not ({named or "the sum of all"})' in line


def test_what_is_no_loss_does_not_count(tmp_path):
    make_runner(tmp_path / 'a', model=Losses(loss_cls=[1.0, 2.0], acc=math.nan)).train()
    assert (tmp_path / 'a' / 'epoch_2.pth').exists()


@pytest.fixture
def alone_in_a_group():
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('alone_in_a_group')
@pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize(
    'use_orig_params, name', [(False, '1._flat_param'), (True, '1.kernel.original.weight')]
)
@pytest.mark.parametrize('whole', [False, True], ids=['a part', 'the whole'])
def test_sharded_model(whole, use_orig_params, name):
    """Kernels cannot be generated between steps; parameters can be looked at."""
    shard = partial(MMFullyShardedDataParallel, device_id='cpu', use_orig_params=use_orig_params)
    model = nn.Sequential(OREPAConv2d(3, 2, 3), OREPAConv2d(2, 2, 3))
    if whole:
        model, name = shard(model), name.replace('1._flat', '_flat')
    else:
        model[1] = shard(model[1])
    hook, runner = NonFiniteHook(), SimpleNamespace(model=model, logger=MMLogger('sharded'))
    hook.after_train_epoch(runner)
    pieces = {
        key.replace('_fsdp_wrapped_module.', ''): piece for key, piece in model.named_parameters()
    }
    with torch.no_grad():
        pieces[name].view(-1)[3] = math.nan
    with pytest.raises(UserError, match=f'is not saved, beginning with {name}: lower the'):
        hook.after_train_epoch(runner)


def test_a_process_speaks_for_its_own_loss(apart, tmp_path):
    line = apart(line_of_two, str(tmp_path))
    assert line == (
        'the loss is nan in iteration 1 of process 1: all kernels are finite, the input is not '
        '(images/1.png); check the data'
    )
