"""The libraries' own tools on this package's configs: docs/howto/library_tools.md."""

import importlib.util
import json
from pathlib import Path

import pytest

from mmorepa.datasets.digits import write_digits
from support import ROOT

CONFIGS = ROOT / 'configs' / 'digits'
NARROW = CONFIGS / 'orepa-resnet18-w0.125_1xb64-10e_digits.py'
DETECTOR = CONFIGS / 'retinanet_orepa-r18_fpn_1xb8-8e_digits.py'
SEGMENTOR = CONFIGS / 'pspnet_orepa-r18-d8_1xb4-600_digits-128x128.py'
#: Library, tool, arguments, and what it prints or the files that it writes.
TOOLS = [
    ('mmpretrain', 'get_flops', [NARROW, '--shape', 32], 'Flops: 0.854M'),
    ('mmpretrain', 'get_flops', ['deploy.py', '--shape', 32], 'Flops: 0.842M'),
    ('mmpretrain', 'browse_dataset', [NARROW, '-o', 'seen', '-n', 2], ['seen/*.png'] * 2),
    ('mmpretrain', 'confusion_matrix', [NARROW, NARROW.with_suffix('.pth'),
     '--show-path', 'matrix.png'], ['matrix.png']),
    ('mmpretrain', 'analyze_logs', ['plot_curve', 'scalars.json', '--keys', 'loss',
     '--out', 'curve.png'], ['curve.png']),
    ('mmpretrain', 'vis_scheduler', [NARROW, '--save-path', 'rates.png', '--dataset-size', 64],
     ['rates.png']),
    ('mmpretrain', 'print_config', [NARROW], "type='OREPAResNet'"),
    ('mmdet', 'get_flops', [DETECTOR, '--num-images', 1, '--cfg-options',
     'model.backbone.base_channels=8',
     'model.backbone.stem_channels=8', 'model.neck.in_channels=[8,16,32,64]',
     'model.neck.out_channels=8', 'model.bbox_head.in_channels=8',
     'model.bbox_head.feat_channels=8'], 'Flops: '),
    ('mmdet', 'browse_dataset', [DETECTOR, '--output-dir', 'boxes', '--not-show',
     '--cfg-options', 'train_dataloader.dataset.indices=2'], ['boxes/*.png'] * 2),
    ('mmdet', 'print_config', [DETECTOR], "OREPAResNet'"),
    ('mmseg', 'print_config', [SEGMENTOR], "OREPAResNet'"),
]  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tools')
    write_digits(folder / 'data/digits', ['imagenet', 'coco'])
    lines = [dict(lr=0.1, loss=1.0 / n, time=0.1, epoch=n, iter=n, step=n) for n in (1, 2)]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    text = f"_base_ = '{NARROW}'\nmodel = dict(backbone=dict(deploy=True))"
    (folder / 'deploy.py').write_text(text)
    return folder


@pytest.mark.parametrize(
    'library, tool, arguments, expected', TOOLS, ids=lambda own: own if isinstance(own, str) else ''
)
def test_tool(library, tool, arguments, expected, folder, server):
    root = Path(importlib.util.find_spec(library).origin).parent
    path = next((root / '.mim/tools').rglob(f'{tool}.py'))
    code, said = server.run(folder, path, *arguments, MPLBACKEND='Agg')
    assert code == 0, said
    if isinstance(expected, str):
        assert expected in said
    else:
        assert len(list(folder.glob(expected[0]))) == len(expected)
