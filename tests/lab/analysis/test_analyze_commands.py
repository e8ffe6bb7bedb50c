"""The commands of tools/analyze.py: what they print and write, and what they refuse.

``effective-lr`` has tests of its own.
"""

import json

import matplotlib.image
import pytest
import torch

from mmorepa.checkpoints.models import build_model
from mmorepa.convs import switch_to_deploy
from mmorepa.datasets.digits import write_digits
from mmorepa.lab.analysis import branches_report as branches
from mmorepa.lab.analysis import forms_report as diff
from mmorepa.lab.analysis import spectrum_report as spectrum
from mmorepa.lab.benchmark.plan import ladder
from support import CONFIG, ROOT

PLAIN = CONFIG.with_name('resnet18_1xb64-10e_digits.py')
DBB = CONFIG.with_name('dbb-resnet18_1xb64-10e_digits.py')
REPVGG = CONFIG.with_name('orepa-repvgg-a0_1xb64-10e_digits.py')
NARROW = [
    '--cfg-options',
    'model.backbone.base_channels=8',
    'model.backbone.stem_channels=8',
    'model.head.in_channels=64',
]
SAME = 1e-6  # relative, the same number in another file
WRITTEN = ('branches', 'spectrum', 'norms', 'diff')


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize('command', WRITTEN)
def test_table_json_and_picture(command, analyze, training_checkpoint, tmp_path):
    text = analyze(command, CONFIG, training_checkpoint, '--out', 'out', *NARROW)
    assert f'{CONFIG.name}, epoch_3.pth' in text
    assert text.endswith(f'wrote out/{command}.json and out/{command}.png\n')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        f'{command}.json',
        f'{command}.png',
    ]
    assert read(tmp_path / 'out' / f'{command}.json')
    pixels = matplotlib.image.imread(tmp_path / 'out' / f'{command}.png')
    assert min(pixels.shape[:2]) > 500
    assert (pixels[..., :3] < 0.9).mean() > 0.01  # something is drawn


NO_CONFIG = ['nowhere.py'], 'error: no config at nowhere.py'
NO_CHECKPOINT = [CONFIG, 'nowhere.pth', *NARROW], 'error: no checkpoint at nowhere.pth'
NO_FOLDER = [CONFIG, '--out', ROOT / 'setup.py'], 'setup.py is a file: wanted a folder'


@pytest.mark.parametrize(
    'command, fault',
    [
        *[(command, fault) for command in WRITTEN for fault in (NO_CONFIG, NO_FOLDER)],
        ('budget', NO_CONFIG),
        ('budget', NO_FOLDER),
        ('branches', NO_CHECKPOINT),
        ('diff', NO_CHECKPOINT),
    ],
)
def test_what_is_not_there(command, fault, analyze, tmp_path):
    arguments, message = fault
    text = analyze(command, *arguments, code=2)
    assert message in text
    assert text.count('\n') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'command, config, options, message',
    [
        ('branches', PLAIN, (), 'has no generated kernels'),
        (
            'branches',
            CONFIG,
            ['model.backbone.reparam=ExpandNet'],
            'have no branches to compare: wanted OREPA',
        ),
        ('spectrum', DBB, (), 'has a frequency prior: wanted OREPA blocks'),
        ('norms', DBB, (), 'has no deep linear stem: wanted a network'),
        ('budget', PLAIN, (), 'has ResNet: wanted a ResNet of this package'),
        ('budget', REPVGG, (), 'has OREPARepVGG: wanted a ResNet of this package'),
    ],
)
def test_networks_without_what_is_looked_for(command, config, options, message, analyze):
    # RepVGG's head has another width, which is of no matter here.
    text = analyze(command, config, *NARROW[:2], *options, code=2)
    assert text.startswith('error: ') and message in text
    assert text.count('\n') == 1


class TestBranches:
    def test_numbers(self, narrow_config, training_checkpoint, tmp_path):
        report = branches.study(narrow_config(), training_checkpoint)
        assert len(report.layers) == 19  # three in the stem, sixteen behind it
        report.write_json(tmp_path / 'a.json')
        found = read(tmp_path / 'a.json')
        first = found['layers'][0]
        assert first['name'] == 'backbone.conv1.0'
        assert sum(first['with_scales']['shares'].values()) == pytest.approx(1, rel=SAME)
        matrix = torch.tensor(first['with_scales']['cosines'])
        assert matrix.shape == (6, 6)
        off_diagonal = matrix[~torch.eye(6, dtype=bool)].mean().item()
        assert off_diagonal == pytest.approx(first['with_scales']['similarity'], rel=1e-4)
        assert found['mean']['with_scales']['similarity'] == pytest.approx(
            sum(layer['with_scales']['similarity'] for layer in found['layers']) / 19, rel=SAME
        )

    def test_scales_of_one_make_no_difference(self, narrow_config, training_checkpoint):
        scales = dict.fromkeys(('original', 'average', 'pointwise'), None)
        cfg = narrow_config(**{'model.backbone.reparam': dict(type='OREPA', branches=scales)})
        report = branches.study(cfg)
        assert all(layer.scaled == layer.bare for layer in report.layers)

    def test_of_dbb(self, narrow_config):
        report = branches.study(narrow_config(**{'model.backbone.reparam': 'DBB'}))
        assert report.names == ['original', 'pointwise', 'average', 'pointwise_kxk']
        assert len(report.layers) == 16
        assert report.table().row_count == 16

    def test_the_start_of_training(self, narrow_config):
        report = branches.study(narrow_config())
        assert report.mean_share('prior') == 0
        cells = dict((column.header, list(column.cells)) for column in report.table().columns)
        assert cells['prior'] == ['0.00'] * 19
        assert not any('prior' in pair for pair in cells['most alike'])


class TestSpectrum:
    def test_numbers(self, narrow_config, training_checkpoint, tmp_path):
        report = spectrum.study(narrow_config(), training_checkpoint)
        assert [s.kind for s in report.spectra] == ['stem'] + ['3x3'] * 16
        assert len(report.priors) == 19
        assert list(report.filters) == [f'3x3, {8 * 2**i} channels' for i in range(4)]
        report.write_json(tmp_path / 'a.json')
        found = read(tmp_path / 'a.json')
        assert [len(layer['whole']) for layer in found['layers']] == [7] + [3] * 16
        assert sum(f['channels'] for f in found['filters']['3x3, 16 channels']) == 16

    def test_the_start_of_training(self, narrow_config):
        report = spectrum.study(narrow_config())
        assert all(found.size == 0 for found in report.spectra)


class TestNorms:
    def test_against_the_plain_sibling(self, analyze, training_checkpoint, narrow_config, tmp_path):
        plain = build_model(narrow_config(**{'model.backbone.reparam': None}))
        torch.save(dict(state_dict=plain.state_dict()), 'plain.pth')
        # --cfg-options are the first config's; the plain one is a file of its own.
        narrow = dict(base_channels=8, stem_channels=8)
        model = dict(backbone=narrow, head=dict(in_channels=64))
        (tmp_path / 'plain.py').write_text(f'_base_ = {str(PLAIN)!r}\nmodel = {model}\n')
        arguments = ['--plain', 'plain.py', 'plain.pth', '--out', 'out', *NARROW]
        text = analyze('norms', CONFIG, training_checkpoint, *arguments)
        assert 'plain.py, plain.pth' in text
        found = read(tmp_path / 'out' / 'norms.json')
        assert found['stem']['shape'] == found['plain']['shape'] == [8, 3, 7, 7]
        weight = plain.backbone.conv1.weight
        assert found['plain']['std'] == pytest.approx(weight.std(unbiased=False).item(), rel=1e-4)
        assert found['stem']['centre'] > found['plain']['centre']

    @pytest.mark.parametrize(
        'plain, message',
        [
            ([PLAIN], 'has the shape [64, 3, 7, 7], wanted [8, 3, 7, 7]'),
            ([CONFIG], 'has a OREPAConv2d at backbone.conv1, wanted a plain convolution'),
            ([PLAIN, 'nowhere.pth'], 'no checkpoint at nowhere.pth'),
            ([PLAIN, 'a.pth', 'b.pth'], '--plain has 3 values: wanted CONFIG'),
        ],
    )
    def test_other_plain_networks(self, plain, message, analyze):
        text = analyze('norms', CONFIG, *NARROW, '--plain', *plain, code=2)
        assert message in text
        assert text.count('\n') == 1


class TestDiff:
    def test_on_the_test_data(self, analyze, training_checkpoint, tmp_path):
        write_digits(tmp_path, ['imagenet'], image_size=32)
        data = [
            f'test_dataloader.dataset.data_root={tmp_path / "imagenet"}',
            'test_dataloader.num_workers=0',
            'test_dataloader.persistent_workers=False',
            'test_dataloader.batch_size=4',
        ]
        text = analyze('diff', CONFIG, training_checkpoint, '--data', *NARROW, *data)
        assert 'same argmax 100.00%; within the 1e-04 of convert.py' in text
        (path,) = tmp_path.glob('work_dirs/*/diff.json')
        found = read(path)
        assert found['images'] == '4 images of the test data'
        assert found['agreement']['within_tolerance'] is True
        assert found['differs'] == []
        assert len(found['layers']) == 20  # seventeen blocks, three shortcuts

    def test_without_the_data(self, analyze, training_checkpoint):
        text = analyze('diff', CONFIG, training_checkpoint, '--data', *NARROW, code=2)
        assert text.startswith('error: the test data of the config is not there')
        assert text.count('\n') == 1

    def test_names_the_layer_at_fault(self, analyze, training_checkpoint, monkeypatch):
        def with_a_fault(model, inplace):
            after = switch_to_deploy(model, inplace=inplace)
            after.backbone.layer2[0].conv1.bias.data += 1
            return after

        monkeypatch.setattr('mmorepa.lab.analysis.form_differences.switch_to_deploy', with_a_fault)
        small = ['--probe-size', 32, '--out', 'out']
        text = analyze('diff', CONFIG, training_checkpoint, *small, *NARROW)
        (line,) = (line for line in text.splitlines() if 'by themselves' in line)
        assert line.startswith('differ most by themselves (relative): backbone.layer2.0.conv1 ')
        assert text.count('DIFFERS') == 1
        assert 'beyond the 1e-04 of convert.py' in text

    def test_deploy_form(self, analyze, narrow_config):
        model = switch_to_deploy(build_model(narrow_config()))
        torch.save(dict(state_dict=model.state_dict()), 'deploy.pth')
        text = analyze('diff', CONFIG, 'deploy.pth', *NARROW, code=2)
        assert 'is in deploy form already, there is nothing to compare' in text
        assert text.count('\n') == 1

    def test_differences_that_only_add_up(self, narrow_config, training_checkpoint):
        report = diff.study(narrow_config(), training_checkpoint, probe_size=32)
        grown = diff.FormsReport(
            report.title, report.images, report.layers, type(report.agreement)(1.0, 1e-3, 1.0)
        )
        assert grown.summary()[-1].startswith('no layer differs by itself by more than that')
        assert report.summary()[-1].startswith('raw outputs: ')


def test_budget(analyze, tmp_path):
    small = ['--batch', 2, '--size', 32, '--repeats', 1, '--device', 'cpu', '--out', 'out']
    text = analyze('budget', CONFIG, *small, *NARROW)
    assert f'{CONFIG.stem}, 2 × 32²' in text
    names = ['bars.png', 'benchmark.md', 'budget.json', 'split.png']
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == names
    found = read(tmp_path / 'out' / 'budget.json')
    assert found['preset'] == 'paper'
    (case,) = found['cases']
    assert [s['name'] for s in case['subjects']] == [subject.name for subject in ladder()]
    assert [s['rung'] for s in case['subjects']] == [subject.rung for subject in ladder()]
    assert not any(s['failures'] for s in case['subjects'])
    # Each rung has more parameters than the one before it, offline as many as online.
    trainable = [s['trainable'] for s in case['subjects']]
    assert trainable[1::2] == trainable[2::2]
    assert trainable[0] < trainable[1] < trainable[3] < trainable[5] < trainable[7]
