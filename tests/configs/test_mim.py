"""mim's commands, on the package in an editable install, from an empty folder."""

import json
import re
import sys
import venv
from pathlib import Path

import pytest
import yaml

from mmorepa.datasets.digits import write_digits
from support import FINDS_PACKAGES, ROOT, run

CONFIG = 'orepa-resnet18_1xb64-10e_digits.py'
#: A small network, one epoch of two iterations.
OPTIONS = [
    '--cfg-options',
    'model.backbone.base_channels=4',
    'model.backbone.stem_channels=4',
    'model.head.in_channels=32',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    *(
        f'{name}_dataloader.{field}'
        for name in ('train', 'val', 'test')
        for field in ('batch_size=8', 'num_workers=0', 'persistent_workers=False')
    ),
    *(f'{name}_dataloader.dataset.indices=16' for name in ('train', 'val', 'test')),
]
RATES = ('0.01', '0.02')


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """Python of a fresh environment with the checkout in it; all else it sees in this one."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=False)
    (site,) = folder.glob('lib/python*/site-packages')
    seen = [path for path in sys.path if Path(path).name in ('site-packages', 'dist-packages')]
    # With what their own .pth files do: setuptools brings distutils to Python 3.12 by one.
    lines = [f'import site; site.addsitedir({path!r})' for path in seen]
    (site / 'seen.pth').write_text('\n'.join(lines))
    python = folder / 'bin' / 'python'
    pip = ('-m', 'pip', 'install', '--no-deps', '--no-build-isolation', '--no-index')
    run(folder, python, *pip, '-e', ROOT)
    return python


@pytest.fixture(scope='module')
def mim(python, tmp_path_factory):
    """Runs mim in an otherwise empty folder with the digits, and gives what it printed."""
    folder = tmp_path_factory.mktemp('work')
    write_digits(folder / 'data' / 'digits', ['imagenet'])

    def call(*arguments):
        return run(folder, python, '-W', 'ignore', '-m', 'mim', *arguments)

    call.folder = folder
    return call


@pytest.fixture(scope='module')
def found(mim):
    """What ``mim search`` knows of each config."""
    mim('search', 'mmorepa', '--json', 'found.json')
    fields = json.loads((mim.folder / 'found.json').read_text())
    return {name: {key: fields[key][name] for key in fields} for name in fields['model']}


@pytest.fixture(scope='module')
def experiments(mim):
    """The folders that a grid search over two rates has left."""
    rates = ' '.join(('--optim_wrapper.optimizer.lr', *RATES))
    said = mim(
        *('gridsearch', 'mmorepa', CONFIG, '--gpus', '0', '--work-dir', 'grid'),
        *('--search-args', rates, *OPTIONS),
    )
    assert said.count('finished successfully.') == len(RATES) + 1
    return {rate: mim.folder / f'grid_search_optim_wrapper.optimizer.lr_{rate}' for rate in RATES}


def metafiles():
    paths = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    return [yaml.safe_load((ROOT / path).read_text()) for path in paths]


def test_the_index_names_every_metafile():
    paths = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    there = (ROOT / 'configs').rglob('metafile.yml')
    assert sorted(paths) == sorted(str(path.relative_to(ROOT)) for path in there)


def test_names_are_those_of_the_files():
    for file in metafiles():
        for model in file['Models']:
            assert (ROOT / model['Config']).is_file()
            assert Path(model['Config']).stem == model['Name']
            # mim's --config looks for names in lower case.
            assert model['Name'] == model['Name'].lower()


def test_search_knows_every_model(found):
    names = [model['Name'] for file in metafiles() for model in file['Models']]
    assert len(set(names)) == len(names)
    assert set(found) == set(names)


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        (
            'orepa-resnet50_4xb64-120e_in1k',
            {'model': 'orepa', 'imagenet-1k/top_1_accuracy': 77.31, 'epochs': 120},
        ),
        ('dbb-resnet18-no-branch-norm_4xb64-120e_in1k', {'model': 'dbb'}),
        ('repvgg-a0_4xb64-120e_in1k', {'model': 'repvgg', 'parameters': 8309384}),
        ('resnet18-w2_4xb64-120e_in1k', {'model': 'wide resnet'}),
        ('retinanet_dbb-r50_fpn_1x_coco', {'training_data': 'coco', 'coco/box_ap': 36.6}),
    ],
)
def test_search_says(name, fields, found):
    assert {key: found[name][key] for key in fields} == fields


def test_accuracies_are_marked_by_their_source(found):
    """Only where the weights are here were they measured."""
    for name, fields in found.items():
        has_metric = any('/' in key and value is not None for key, value in fields.items())
        source = 'measured' if fields['weight'] else 'the paper, not reproduced'
        assert fields['results_source'] == (source if has_metric else None), name


def test_search_by_collection(mim):
    said = mim('search', 'mmorepa', '--model', 'dbb', '--field', 'parameters')
    names = re.findall(r'config id: (\S+)', said)
    assert len(names) > 5
    assert all('dbb' in name for name in names)


@FINDS_PACKAGES
def test_gridsearch_trains_each_rate(experiments):
    for rate, folder in experiments.items():
        assert (folder / 'epoch_1.pth').is_file()
        (log,) = folder.glob('*/*.log')
        text = log.read_text()
        assert f'lr={rate}' in text.replace(' ', '')
        assert 'accuracy/top1' in text


@FINDS_PACKAGES
def test_test_finds_the_form(mim, experiments):
    checkpoint = experiments[RATES[0]] / 'epoch_1.pth'
    said = mim('test', 'mmorepa', CONFIG, '--checkpoint', checkpoint, '--gpus', '0', *OPTIONS)
    assert 'is in training form' in said
    assert 'accuracy/top1' in said


def test_no_two_configs_have_one_name():
    """mim looks a config up by the name of its file alone."""
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    assert len(names) == len(set(names))
