"""The commands as a user types them, on the digits: train, test, convert, test again."""

import json
import os
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

import demo
from mmorepa.checkpoints import load_checkpoint
from mmorepa.engine.run import load_config
from mmorepa.environment import distribution
from support import CONFIG, ROOT

# A small network and two epochs: enough to tell digits apart far better than by chance.
OPTIONS = [
    '--cfg-options',
    'model.backbone.base_channels=8',
    'model.backbone.stem_channels=8',
    'model.head.in_channels=64',
    'train_cfg.max_epochs=2',
    'train_cfg.val_interval=2',
    'optim_wrapper.optimizer.lr=0.05',
    'default_hooks.checkpoint.interval=1',
]
OWN = Path('work_dirs/demo/pretrain', CONFIG.name)
TRAINED = OWN.with_name('epoch_2.pth')
LEARNED = 30.0  # top-1 in per cent; chance is 10
TRAIN, VAL = 80, 50  # canvases to fine-tune with


@pytest.fixture(scope='module')
def workplace(tmp_path_factory, run_forked):
    """A folder in which `make demo` ran, and what that printed."""
    folder = tmp_path_factory.mktemp('demo')
    (folder / 'demo.log').write_text(run_forked(folder, ROOT / 'tools' / 'demo.py', *OPTIONS))
    return folder


@pytest.fixture(scope='module')
def command(workplace, run_forked):
    """Runs a tool in that folder."""

    def run_tool(name, *arguments, code=0):
        return run_forked(workplace, ROOT / 'tools' / name, *arguments, code=code)

    return run_tool


@pytest.fixture(scope='module')
def trained(workplace):
    """The training config and checkpoint that the demo left."""
    return OWN, TRAINED


def test_demo(workplace, trained):
    shown = (workplace / 'demo.log').read_text()
    assert f'mim train {distribution("mmpretrain")} ' in shown
    assert 'Epoch(train)' not in shown
    text = (workplace / 'work_dirs/demo/pretrain.log').read_text()
    assert '17 blocks squeezed, 20 BatchNorms folded' in text
    metrics = [
        json.loads((workplace / f'work_dirs/demo/pretrain/{form}.json').read_text())[
            'accuracy/top1'
        ]
        for form in ('training', 'deploy')
    ]
    assert metrics[0] == metrics[1] > LEARNED
    assert all(f'is in {form} form' in text for form in ('training', 'deploy'))
    relative = re.search(r'raw outputs for 359 validation images: .*relative (\S+),', shown)
    assert float(relative[1]) < 1e-4
    assert re.search(r'one run with seed 0, \d+ threads, torch \d', shown)
    written = torch.load(workplace / 'work_dirs/demo/pretrain/deploy.pth', weights_only=True)
    assert written['meta']['mmorepa']['form'] == 'deploy'
    assert written['meta']['epoch'] == 2


@pytest.mark.parametrize(
    'experiment, options',
    [
        (
            'detect',
            [
                'model.neck.in_channels=[8,16,32,64]',
                'train_cfg.max_epochs=1',
                'train_cfg.val_interval=1',
            ],
        ),
        (
            'segment',
            [
                'model.decode_head.in_channels=64',
                'model.auxiliary_head.in_channels=32',
                'train_cfg.max_iters=20',
                'train_cfg.val_interval=20',
                'default_hooks.checkpoint.interval=20',
            ],
        ),
    ],
)
def test_demo_of_finetuning(workplace, trained, command, experiment, options, monkeypatch, capsys):
    """Its steps, forked; mim's part of the training is what the demo of pretraining has."""

    def step(log, program, script, *arguments):
        if program == 'mim':
            package = demo.EXPERIMENTS[experiment][0]
            library, config, gpus, number, *arguments = arguments
            assert (library, gpus, number) == (distribution(package), '--gpus', 0)
            assert script == 'train'
            script = Path(import_module(package).__path__[0], '.mim/tools/train.py')
            arguments = [config, *arguments]
        if Path(script).name == 'digits.py':
            arguments = [*arguments, '--canvases', TRAIN, VAL]
        with log.open('a') as file:
            file.write(command(script, *arguments))
        return 1.0

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(demo, 'run', step)
    monkeypatch.setattr(demo, 'TOOLS', ROOT / 'tools')
    monkeypatch.setattr(demo, 'CONFIGS', ROOT / 'configs' / 'digits')
    narrow = ['model.backbone.base_channels=8', 'model.backbone.stem_channels=8']
    # This process, which has threads, reads the images of the comparison itself: no fork of it.
    narrow += ['val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']
    demo.demonstrate(experiment, [*narrow, *options])
    text = Path(f'work_dirs/demo/{experiment}.log').read_text()
    assert re.search(r'loaded all \d+ tensors of work_dirs/demo/pretrain/epoch_2.pth', text)
    metrics = [
        json.loads(Path(f'work_dirs/demo/{experiment}/{form}.json').read_text())
        for form in ('training', 'deploy')
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=5e-4)
    shown = capsys.readouterr().out
    compared = re.search(r'raw outputs for (\d+) validation images: .*relative (\S+),', shown)
    assert int(compared[1]) == VAL
    assert float(compared[2]) < 1e-4


def test_keep_bn_with_metrics_before_and_after(workplace, trained, command):
    text = command('convert.py', *trained, 'plain.pth', '--keep-bn', '--verify')
    assert '17 blocks squeezed, 0 BatchNorms folded' in text
    metrics = re.search(r'on the test set: (.*) before, (.*) after', text)
    assert metrics[1] == metrics[2]
    assert 'accuracy/top1' in metrics[1]
    # A plain backbone goes on from there, and one with blocks, which imitate it.
    narrow = [*OPTIONS, 'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=64']
    # Its stem is too narrow to imitate one.
    orepa = [*narrow, 'model.backbone.reparam.where=layer']
    for config, options, said in [
        ('resnet18', narrow, ''),
        ('orepa-resnet18', orepa, ', a plain network: 16 blocks imitate its convolutions'),
    ]:
        config = ROOT / f'configs/digits/{config}_1xb64-10e_digits.py'
        text = command('train.py', config, '--no-validate', '--init', 'plain.pth', *options)
        assert f'loaded all 120 tensors of plain.pth{said}' in text
        assert 'left 2 of other parts' in text


def test_training_config_takes_the_deploy_checkpoint(workplace, trained, command):
    deploy = 'work_dirs/demo/pretrain/deploy.pth'
    text = command('test.py', trained[0], deploy, '--out', 'metrics.json')
    assert 'is in deploy form' in text
    expected = (workplace / 'work_dirs/demo/pretrain/training.json').read_text()
    assert (workplace / 'metrics.json').read_text() == expected


def test_the_library_s_own_test_refuses_another_form(trained, command):
    tool = Path(import_module('mmpretrain').__path__[0]) / '.mim/tools/test.py'
    deploy = 'work_dirs/demo/pretrain/deploy.pth'
    text = command(tool, trained[0], deploy, code=1)
    assert 'as a deploy form whose BatchNorms are folded: load it into the deploy form' in text
    assert 'accuracy' in command(tool, deploy.replace('.pth', '.py'), deploy)


def test_converting_twice_says_so(workplace, trained, command):
    deploy = 'work_dirs/demo/pretrain/deploy.pth'
    text = command('convert.py', trained[0], deploy, 'again.pth')
    assert 'is in deploy form already: nothing to convert' in text
    assert (workplace / 'again.pth').exists()


def test_the_library_loads_the_deploy_form_by_its_config(workplace, trained, server):
    """By mmpretrain's own interface, in a process that knows nothing of this package."""
    code = """
import glob
from mmpretrain import ImageClassificationInferencer
deploy = 'work_dirs/demo/pretrain/deploy'
infer = ImageClassificationInferencer(deploy + '.py', pretrained=deploy + '.pth', device='cpu')
assert not any('kernel' in key for key in infer.model.state_dict())
right = sum(
    infer(path)[0]['pred_label'] == digit
    for digit, folder in enumerate(sorted(glob.glob('data/digits/imagenet/val/*')))
    for path in sorted(glob.glob(folder + '/*'))[:10]
)
print('right:', right)
"""
    (workplace / 'infer.py').write_text(code)
    found, text = server.run(workplace, 'infer.py')
    assert found == 0, text
    assert int(re.search(r'right: (\d+)', text)[1]) > LEARNED


def test_training_goes_on_where_it_stopped(workplace, trained, command):
    shutil.copytree(workplace / 'work_dirs/demo/pretrain', workplace / 'longer')
    options = ['--work-dir', 'longer', '--cfg-options', 'train_cfg.max_epochs=3']
    text = command('train.py', trained[0], '--resume', *options)
    assert 'resumed epoch: 2' in text
    assert load_checkpoint(workplace / 'longer/epoch_3.pth')['meta']['epoch'] == 3
    # The config that this left resumes too, but what is tested is the checkpoint that was named.
    left = workplace / 'longer' / CONFIG.name
    assert load_config(left).resume
    text = command('test.py', left, 'longer/epoch_2.pth', '--out', 'second.json')
    assert 'resumed' not in text
    before = (workplace / 'work_dirs/demo/pretrain/training.json').read_text()
    assert (workplace / 'second.json').read_text() == before


@pytest.mark.parametrize(
    'words, message',
    [
        (['train.py', 'missing.py'], 'no config at missing.py'),
        (['test.py', CONFIG, 'missing.pth'], 'no checkpoint at missing.pth'),
        (['test.py', 'data', 'missing.pth'], 'no config at data'),
        (['test.py', CONFIG, TRAINED, '--out', TRAINED], 'epoch_2.pth is what is to be tested'),
        (['test.py', OWN, TRAINED, '--out', OWN], 'is what is to be tested: choose another name'),
        (['test.py', OWN, TRAINED, '--out', 'demo.log'], 'demo.log exists and holds no metrics'),
        (['convert.py', CONFIG, 'missing.pth', 'out.pth'], 'no checkpoint at missing.pth'),
        (['train.py', CONFIG, '--resume', 'missing.pth'], 'no checkpoint to resume from at'),
    ],
    ids=lambda value: '',
)
def test_wrong_paths_get_one_line(workplace, command, words, message):
    before = sorted(os.listdir(workplace))
    text = command(*words, code=2)
    assert text.startswith('error: ')
    assert message in text
    assert text.count('\n') == 1
    assert sorted(os.listdir(workplace)) == before
