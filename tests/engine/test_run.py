"""Reading a config: what is wrong with it is said on one line."""

import runpy
import sys

import pytest
from mmengine.runner import Runner
from mmpretrain.evaluation import ConfusionMatrix, SingleLabelMetric

from mmorepa.checkpoints import build_model
from mmorepa.engine.run import RANKS, load_config, train
from mmorepa.engine.run import test as evaluate
from mmorepa.errors import UserError
from mmorepa.writing import alone_in, write_json
from support import CONFIG, ROOT


@pytest.mark.parametrize(
    'text, message',
    [
        ('raise SystemExit(0)', 'ends the process while it is read'),
        ('import sys; sys.exit()', 'ends the process while it is read'),
        ('model = (', 'is no config that can be read'),
        ('a = 1\nb = {}["c"]', r"can be read: 'c' \(KeyError\) in line 2 of .*config.py$"),
        ('a = 1 / 0', r'division by zero \(ZeroDivisionError\) in line 1 of'),
        ('_base_ = 5', 'can be read: .*: wanted fields with values, and names of files as _base_'),
        ('a = 1', 'has no model'),
        ('model = 3', 'has model=3: wanted a dict with the type of a model'),
        ('model = None', 'has model=None: wanted a dict'),
        ('model = dict(depth=18)', r"has model={'depth': 18}: wanted a dict with the type"),
    ],
)
def test_what_is_no_config(text, message, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(UserError, match=message) as info:
        load_config(path)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'model.backbone.depth.x': 3}, '--cfg-options do not fit .*: depth='),
        ({'train_dataloader.dataset.pipeline.9.type': 'x'}, '--cfg-options do not fit'),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message) as info:
        load_config(CONFIG, cfg_options=options)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('a.json', '[1, 2]', 'can be read: .*: wanted fields with values'),
        ('a.yaml', 'b: 1\nc: [1', 'can be read: line 3: did not find expected'),
    ],
)
def test_what_is_no_config_of_another_kind(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as info:
        load_config(tmp_path / name)
    assert '\n' not in str(info.value)


def test_custom_imports_among_the_options(tmp_path, monkeypatch):
    """MMEngine imports what the file says, before there are options."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'imported_by_an_option.py').write_text('')
    load_config(CONFIG, cfg_options={'custom_imports.imports': ['imported_by_an_option']})
    assert sys.modules.pop('imported_by_an_option')
    with pytest.raises(UserError, match=r"'nope'.* cannot be imported: .*wanted dict"):
        load_config(CONFIG, cfg_options={'custom_imports.imports': ['nope']})
    with pytest.raises(UserError, match='custom_imports=3 cannot be imported: .*wanted dict'):
        load_config(CONFIG, cfg_options={'custom_imports': 3})


@pytest.mark.parametrize('rank', RANKS)
def test_other_processes_write_to_the_same_folder(rank, tmp_path, monkeypatch):
    with alone_in(tmp_path):
        with pytest.raises(UserError, match='another training writes to'):
            train(load_config(CONFIG, tmp_path))
        monkeypatch.setenv(rank, '1')
        with pytest.raises(UserError, match='No such file or directory: .data/digits'):
            train(load_config(CONFIG, tmp_path))


def test_init_in_place_of_pretrained(tmp_path, training_checkpoint):
    """mmseg's configs name a checkpoint so, and a backbone takes one of the two."""
    path = ROOT / 'configs/fashion/pspnet_orepa-r18-w0.25-d8_1xb4-1600_fashion-128x128.py'
    cfg = load_config(path, tmp_path / 'work', {'model.pretrained': 'open-mmlab://resnet18_v1c'})
    # The data are not there: it comes as far as that.
    with pytest.raises(UserError, match='No such file or directory: .data/fashion'):
        train(cfg, init=training_checkpoint)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'model.type': 'Nope'}, "does not build: 'Nope is not in the mmpretrain::model registry"),
        ({'model.backbone.type': 'Nope'}, "does not build: 'Nope is not in the"),
        ({'model.backbone.depth': 17}, "does not build: 'invalid depth 17 for resnet'"),
        ({'model.backbone.size': 1}, "does not build: TypeError: .* argument 'size'"),
        ({'model.backbone.reparam.where': '('}, 'which is no regular expression'),
    ],
    ids=str,
)
@pytest.mark.parametrize('use', [build_model, train], ids=['build', 'train'])
def test_a_model_that_does_not_build(use, options, message, tmp_path):
    with pytest.raises(UserError, match=message) as info:
        use(load_config(CONFIG, tmp_path, options))
    assert '\n' not in str(info.value)


def test_data_that_is_not_there(tmp_path):
    options = {'model.backbone.base_channels': 4, 'model.head.in_channels': 32}
    options['train_dataloader.dataset.data_root'] = '/nowhere'
    with pytest.raises(UserError, match='does not build: FileNotFoundError: .*/nowhere') as info:
        train(load_config(CONFIG, tmp_path, options))
    assert '\n' not in str(info.value)


def test_metrics_of_several_numbers(narrow_config, training_checkpoint, tmp_path, monkeypatch):
    """Numbers of each class, a matrix; the file is one of metrics that may be written again."""
    scores, labels = [[0.9, 0.1], [0.8, 0.2]], [0, 1]
    recall = SingleLabelMetric.calculate(scores, labels, [0.0], average=None)[0][1]
    found = dict(recall=recall.tolist(), matrix=ConfusionMatrix.calculate(scores, labels, 2))
    monkeypatch.setattr(Runner, 'test', lambda runner: {'top1': labels[1], **found})
    metrics = evaluate(narrow_config(tmp_path), training_checkpoint)
    assert metrics == dict(top1=1.0, recall=[100.0, 0.0], matrix=[[1.0, 0.0], [1.0, 0.0]])
    write_json(metrics, tmp_path / 'metrics.json')
    monkeypatch.syspath_prepend(ROOT / 'tools')
    tool = runpy.run_path(str(ROOT / 'tools' / 'test.py'))
    assert tool['holds_metrics'](tmp_path / 'metrics.json')
