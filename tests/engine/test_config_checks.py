"""What is wrong with a config, a launcher or a work dir is one line before anything runs."""

from unittest.mock import Mock

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmpretrain.evaluation import Accuracy

from mmorepa.checkpoints import build_model
from mmorepa.engine import run
from mmorepa.engine.config_checks import check_work_dir
from mmorepa.engine.optim_wrapper_constructor import OREPAOptimWrapperConstructor
from mmorepa.engine.run import load_config
from mmorepa.errors import UserError, explained_building
from support import CONFIG

NARROW = {'model.backbone.base_channels': 4, 'model.head.in_channels': 32}
#: Of the schedule and of fields that are no dicts; the options, and what is said of them.
FIELDS = [
    ('train_cfg.max_epochs', 1.5, 'has train_cfg.max_epochs=1.5: wanted a whole number'),
    ('train_cfg.max_epochs', 0, 'has train_cfg.max_epochs=0: wanted a whole number'),
    ('train_cfg.val_interval', -1, 'has train_cfg.val_interval=-1: wanted a whole number'),
    ('train_dataloader', None, 'has no train_dataloader: wanted one to train with'),
    ('env_cfg', None, 'has env_cfg=None: wanted a dict'),
    ('default_hooks', 5, 'has default_hooks=5: wanted a dict'),
    ('custom_hooks', 5, 'has custom_hooks=5: wanted a list'),
]
#: Of what MMEngine's Runner says.
VALUES = [
    ('train_cfg.foo', 1, "does not build: TypeError: .*unexpected keyword argument 'foo'"),
    ('train_cfg.by_epoch', False, 'does not build: TypeError: IterBasedTrainLoop'),
    ('val_evaluator', None, 'does not build: ValueError: val_dataloader, val_cfg, and val_eval'),
    ('custom_hooks', [5], 'does not build: TypeError: hook should be an instance of Hook or dict'),
    ('randomness.seed', 'abc', 'does not build: TypeError: .* in `np.random.seed'),
    ('randomness.seed', -1, 'does not build: ValueError: Seed must be between 0 and'),
    ('visualizer', 5, 'does not build: TypeError: visualizer should be'),
    ('model.backbone.out_indices', [9], 'does not build: AssertionError in `assert max'),
]


@pytest.mark.parametrize('key, value, message', [*FIELDS, *VALUES])
def test_training(key, value, message, tmp_path):
    with pytest.raises(UserError, match=message) as info:
        run.train(load_config(CONFIG, tmp_path, {**NARROW, key: value}))
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('test_cfg.foo', 1, "does not build: TypeError: .*unexpected keyword argument 'foo'"),
        ('test_evaluator', None, 'does not build: ValueError: test_dataloader, test_cfg, and'),
        ('randomness.seed', 'abc', 'does not build: TypeError: .* in `np.random.seed'),
    ],
)
def test_testing(key, value, message, narrow_config, training_checkpoint, tmp_path):
    with pytest.raises(UserError, match=message) as info:
        run.test(narrow_config(tmp_path, **{key: value}), training_checkpoint)
    assert '\n' not in str(info.value)


def test_an_optimizer_that_does_not_exist(tmp_path):
    model = build_model(load_config(CONFIG, tmp_path, NARROW))
    with pytest.raises(UserError, match="there is no optimizer of type 'Foo'"):
        OREPAOptimWrapperConstructor(dict(optimizer=dict(type='Foo', lr=0.1)))(model)


def test_an_evaluator_that_fails():
    evaluator = Evaluator(Accuracy(topk=(50,)))
    with pytest.raises(UserError, match='c.py has an evaluator that fails: ValueError: Top-50'):
        with explained_building('c.py'):
            score, label = torch.rand(10), torch.tensor([1])
            evaluator.process([dict(pred_score=score, gt_label=label)])
            evaluator.evaluate(1)


@pytest.mark.parametrize('option', ['interval', 'max_keep_ckpts'])
def test_a_hook_that_fails(option, tmp_path):
    hook = CheckpointHook(**{'interval': 1, option: 'abc'}, out_dir=str(tmp_path))
    runner = Mock(epoch=0, work_dir=str(tmp_path))
    with pytest.raises(UserError, match='c.py has a hook that fails: TypeError: .*str'):
        with explained_building('c.py'):
            hook.before_train(runner)
            hook.after_train_epoch(runner)


def test_another_optimizer_than_that_of_the_checkpoint():
    one, other = ([dict(params=[torch.zeros(1)]) for _ in range(n)] for n in (1, 2))
    optimizer = torch.optim.SGD(one, lr=0.1)
    with pytest.raises(UserError, match='c.py has another optimizer than the checkpoint to resume'):
        with explained_building('c.py'):
            optimizer.load_state_dict(torch.optim.SGD(other, lr=0.1).state_dict())


def test_an_error_of_our_own_passes():
    with pytest.raises(TypeError), explained_building('c.py'):
        len(3)


@pytest.mark.parametrize('base', [None, 0, 'abc', 1.5])
def test_auto_scale_lr(base, tmp_path):
    cfg = load_config(CONFIG, tmp_path, {'auto_scale_lr.base_batch_size': base})
    with pytest.raises(UserError, match=f'base_batch_size={base!r} in the config: wanted'):
        run.train(cfg, auto_scale_lr=True)


@pytest.mark.parametrize(
    'launcher, variable, start',
    [
        ('pytorch', 'RANK', 'torchrun'),
        ('slurm', 'SLURM_PROCID', 'srun'),
        ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
    ],
)
def test_a_launcher_that_did_not_start_the_process(launcher, variable, start, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f'found no {variable} .* with {start}'):
        load_config(CONFIG, launcher=launcher)
    monkeypatch.setenv(variable, '0')
    assert load_config(CONFIG, launcher=launcher).launcher == launcher


WRITTEN = f"_base_='{CONFIG}'\n"


@pytest.mark.parametrize('folder', ['', 'other'])
@pytest.mark.parametrize('use', [run.train, run.test])
def test_a_config_is_not_replaced(use, folder, training_checkpoint, tmp_path):
    """MMEngine writes the whole config into the work dir, under the same name."""
    work_dir = tmp_path / folder
    for place in {tmp_path, work_dir}:
        place.mkdir(exist_ok=True)
        (place / 'mine.py').write_text(WRITTEN)
    cfg = load_config(tmp_path / 'mine.py', work_dir)
    with pytest.raises(UserError, match='mine.py is a config that somebody wrote, and MMEngine'):
        use(cfg, training_checkpoint)
    assert (work_dir / 'mine.py').read_text() == WRITTEN


def test_a_base_is_not_replaced(tmp_path):
    (tmp_path / 'bases').mkdir()
    load_config(CONFIG).dump(tmp_path / 'bases' / 'mine.py')
    (tmp_path / 'mine.py').write_text("_base_ = 'bases/mine.py'")
    with pytest.raises(UserError, match='bases/mine.py is a base of .*mine.py, and MMEngine'):
        run.train(load_config(tmp_path / 'mine.py', tmp_path / 'bases'))


@pytest.mark.parametrize('way', ['init', 'load_from'])
def test_the_start_is_not_replaced(way, training_checkpoint, tmp_path):
    """``epoch_3.pth`` in the work dir is what this training writes in its third epoch."""
    cfg = load_config(CONFIG, tmp_path, NARROW)
    options = dict(init=training_checkpoint)
    if way == 'load_from':
        cfg.load_from, options = str(training_checkpoint), {}
    with pytest.raises(UserError, match='epoch_3.pth is in the work dir, where this training'):
        run.train(cfg, **options)


def test_a_config_that_mmengine_wrote_may_be_replaced(tmp_path):
    cfg = load_config(CONFIG, tmp_path, {'model.octave_base_scale': 4})
    cfg.dump(tmp_path / 'mine.py')
    check_work_dir(load_config(tmp_path / 'mine.py'))


def test_a_config_that_is_its_own_base(tmp_path):
    (tmp_path / 'a.py').write_text("_base_ = 'b.py'")
    (tmp_path / 'b.py').write_text("_base_ = 'a.py'")
    with pytest.raises(UserError, match='a.py is its own _base_'):
        load_config(tmp_path / 'a.py')
