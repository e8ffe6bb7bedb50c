"""What the hook logs in real trainings: in scalars.json, in TensorBoard, under wrappers."""

import json
import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import functional as F

from mmorepa import ExpandConv2d, OREPAConv2d, squeeze
from mmorepa.convs import DBBConv2d
from mmorepa.convs.blocks.branch_kernels import branch_sums, measure
from mmorepa.engine.cpu_processes import CPUDistributedDataParallel
from mmorepa.engine.kernel_logger_hook import KernelLoggerHook, group_of, kernel_scalars
from mmorepa.errors import UserError
from support import make_trained_like

ROUNDED = 1e-5  # relative, two ways to the same number in float32
#: MMEngine keeps visualizers, loggers and message hubs by name.
NUMBER = count()


class Backbone(nn.Module):
    def __init__(self, block=OREPAConv2d):
        super().__init__()
        self.conv1 = OREPAConv2d(3, 4, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(
            block(4, 4, 3, padding=1), nn.ReLU(), OREPAConv2d(4, 4, 1), nn.ReLU()
        )

    def forward(self, x):
        return self.layer1(self.bn1(self.conv1(x)))


class Toy(BaseModel):
    def __init__(self, block=OREPAConv2d):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone(block)
        self.head = nn.Linear(4, 2)

    def forward(self, image, label, mode='loss'):
        loss = F.cross_entropy(self.head(self.backbone(image).mean((2, 3))), label)
        return dict(loss=loss) if mode == 'loss' else []


def images():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 12, 12, generator=generator), i % 2) for i in range(8)]


def train(folder, model, interval=2, **options) -> Runner:
    """Four iterations of SGD."""
    options.setdefault('custom_hooks', []).append(dict(type='KernelLoggerHook', interval=interval))
    runner = Runner(
        model,
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=images(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        visualizer=dict(
            type='Visualizer',
            vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
        ),
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
        experiment_name=f'kernel_logger_{next(NUMBER)}',
        log_level='WARNING',
        **options,
    )
    runner.train()
    runner.visualizer.close()
    return runner


def logged(folder) -> list[dict]:
    """The lines of scalars.json that the hook wrote."""
    (path,) = folder.glob('*/vis_data/scalars.json')
    lines = map(json.loads, path.read_text().splitlines())
    return [line for line in lines if any(key.startswith('kernel_norm/') for key in line)]


TAGS = {
    f'{number}/{group}'
    for number in ('branch_similarity', 'kernel_norm')
    for group in ('conv1', 'layer1')
}


@pytest.fixture
def process_group(tmp_path):
    """This process, as all there are."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class TestTraining:
    def test_scalars_and_tensorboard(self, tmp_path):
        runner = train(tmp_path, Toy())
        lines = logged(tmp_path)
        assert [line['step'] for line in lines] == [2, 4]
        assert all(line.keys() == TAGS | {'step'} for line in lines)
        # What is logged last is what the trained model has.
        assert lines[-1] == pytest.approx(dict(kernel_scalars(runner.model), step=4), rel=ROUNDED)
        assert lines[0]['kernel_norm/layer1'] != lines[1]['kernel_norm/layer1']

        (folder,) = tmp_path.glob('*/vis_data')
        events = EventAccumulator(str(folder)).Reload()
        assert set(events.Tags()['scalars']) >= TAGS
        for tag in TAGS:
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            wanted = [(line['step'], line[tag]) for line in lines]
            assert found == [(step, pytest.approx(value, rel=ROUNDED)) for step, value in wanted]

    def test_training_is_what_it_was(self, tmp_path):
        with_hook = train(tmp_path / 'a', Toy(), interval=1).model
        without = train(tmp_path / 'b', Toy(), interval=1000).model
        assert not logged(tmp_path / 'b')
        for first, second in zip(with_hook.parameters(), without.parameters()):
            assert torch.equal(first, second)
        assert all(p.requires_grad for p in with_hook.parameters())

    def test_the_trained_parameters_and_not_their_average(self, tmp_path):
        hooks = [dict(type='EMAHook', momentum=0.5)]
        runner = train(tmp_path, Toy(), custom_hooks=hooks)
        ema_hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
        expected = kernel_scalars(runner.model)
        assert logged(tmp_path)[-1] == pytest.approx(dict(expected, step=4), rel=ROUNDED)
        average = kernel_scalars(ema_hook.ema_model.module)
        assert average['kernel_norm/layer1'] != pytest.approx(
            expected['kernel_norm/layer1'], rel=ROUNDED
        )

    def test_frozen_layers_are_logged_and_stay(self, tmp_path):
        model = Toy()
        model.backbone.conv1.requires_grad_(False)
        train(tmp_path, model)
        first, last = logged(tmp_path)
        assert first['kernel_norm/conv1'] == last['kernel_norm/conv1']
        assert first['kernel_norm/layer1'] != last['kernel_norm/layer1']

    def test_distributed_wrapper(self, tmp_path, process_group):
        train(tmp_path / 'plain', Toy())
        train(tmp_path / 'wrapped', CPUDistributedDataParallel(Toy()))
        plain, wrapped = logged(tmp_path / 'plain'), logged(tmp_path / 'wrapped')
        assert len(wrapped) == 2
        for first, second in zip(plain, wrapped):
            assert second == pytest.approx(first, rel=ROUNDED)

    def test_parameters_in_parts_are_refused(self, process_group):
        model = FullyShardedDataParallel(Toy(), device_id=torch.device('cpu'))
        with pytest.raises(UserError, match='no process of an FSDP training has whole kernels'):
            KernelLoggerHook().before_train(SimpleNamespace(model=model))

    def test_other_processes_do_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr('mmorepa.engine.kernel_logger_hook.is_main_process', lambda: False)
        train(tmp_path, Toy())
        assert not logged(tmp_path)

    def test_without_blocks_it_says_so(self, tmp_path):
        model = squeeze(Toy())
        train(tmp_path, model)
        assert not logged(tmp_path)
        (log,) = tmp_path.glob('*/*.log')
        assert 'KernelLoggerHook: Toy has no blocks, nothing will be logged' in log.read_text()


class TestScalars:
    def test_are_those_of_the_analysis(self):
        model = make_trained_like(Toy())
        found = kernel_scalars(model)
        sums = {s.name: measure(s.branches) for s in branch_sums(model)}
        layer1 = [gram for name, gram in sums.items() if 'layer1' in name]
        assert len(layer1) == 2
        assert found['branch_similarity/layer1'] == pytest.approx(
            sum(gram.similarity for gram in layer1) / 2, rel=ROUNDED
        )
        assert found['kernel_norm/layer1'] == pytest.approx(
            math.hypot(*[gram.kernel_norm for gram in layer1]), rel=ROUNDED
        )

    def test_the_stem_has_the_norm_of_its_whole_kernel(self):
        model = make_trained_like(Toy())
        norm = model.backbone.conv1.squeeze().norm().item()
        assert kernel_scalars(model)['kernel_norm/conv1'] == pytest.approx(norm, rel=ROUNDED)

    def test_blocks_with_norms_inside(self):
        found = kernel_scalars(make_trained_like(Toy(DBBConv2d)))
        assert found.keys() == TAGS

    def test_kernels_without_named_branches_have_a_norm(self):
        model = nn.Sequential(ExpandConv2d(3, 4, 3))
        norm = model[0].squeeze().norm().item()
        assert kernel_scalars(model) == {'kernel_norm/0': pytest.approx(norm, rel=ROUNDED)}

    def test_a_single_branch_has_no_similarity(self):
        model = nn.Sequential(OREPAConv2d(3, 4, 3, branches=['original']))
        assert kernel_scalars(model).keys() == {'kernel_norm/0'}

    def test_no_graph_is_left(self):
        model = Toy()
        kernel_scalars(model)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    'name, group',
    [
        ('backbone.layer1.0.conv2', 'layer1'),
        ('backbone.conv1.0', 'conv1'),
        ('backbone.stage_3.2.branch_reparam', 'stage_3'),
        ('neck.fpn_convs.0.conv', 'neck'),
        ('', 'model'),
    ],
)
def test_groups(name, group):
    assert group_of(name) == group


@pytest.mark.parametrize('interval', [0, -1, 2.5, True, None])
def test_interval(interval):
    with pytest.raises(UserError, match='wanted at least 1'):
        KernelLoggerHook(interval)
