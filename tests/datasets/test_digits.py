"""The digit sets: split, bytes, and what mmpretrain, mmdet and mmseg read from them."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('sklearn', reason='the digits come with scikit-learn')

import cli
from mmorepa.datasets import canvases, digits
from mmorepa.errors import UserError

# One worker writes the sets and imports the three libraries.
pytestmark = pytest.mark.xdist_group('digits')

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'dataset_converters' / 'digits.py'

CANVASES = (8, 4)
SIZE = 160
STAMP = 'digits.json'
SMALL = {'canvases': (2, 1), 'size': 64}

SCANS_IN_ALL = 1797
VAL_PER_CLASS_TOLERANCE = 1  # scans
LIKENESS_AT_LEAST = 0.97  # correlation of a picture, brought back to 8x8, with its scan
INK_BRIGHTER_BY = 40  # grey levels, mask against the rest of the canvas
PERFECT_MAP_TOLERANCE = 1e-6


def write_coco(out, **arguments):
    """Write the COCO set alone; whether it was yet to be written."""
    return digits.write_digits(out, ['coco'], **arguments)['coco']


@pytest.fixture(scope='module')
def scans():
    return digits.load_scans()


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    """All three sets, written once."""
    folder = tmp_path_factory.mktemp('digits')
    assert digits.write_digits(folder, canvases=CANVASES, size=SIZE) == {
        'imagenet': True, 'coco': True, 'cityscapes': True,
    }  # fmt: skip
    return folder


@pytest.fixture(scope='module')
def tool():
    """The command, in this process."""
    spec = importlib.util.spec_from_file_location('digits_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*options):
        """Run it as the command line does; give the exit code."""
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: module.main([*options, '--canvases', '2', '1', '--size', '64']))
        return ended.value.code

    return run


def fingerprint(folder):
    """{path: hash} of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def read_json(path):
    return json.loads(path.read_text(encoding='utf-8'))


def coco_truth(out, split):
    return read_json(out / 'coco' / 'annotations' / f'instances_{split}2017.json')


# The split


def test_split_is_stratified_and_whole(scans):
    images, labels = scans
    split = digits.split_scans(images, labels)
    joined = np.concatenate([split['train'], split['val']])
    assert sorted(joined.tolist()) == list(range(SCANS_IN_ALL))
    for digit in range(10):
        wanted = digits.VAL_FRACTION * (labels == digit).sum()
        assert abs((labels[split['val']] == digit).sum() - wanted) <= VAL_PER_CLASS_TOLERANCE


def test_split_keeps_identical_scans_together():
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 17, (60, 8, 8), dtype=np.uint8)
    content = rng.permutation(np.repeat(np.arange(60), 3))
    labels = content % 4
    labels[np.flatnonzero(content == 7)[0]] = 0  # identical scans under two labels
    split = digits.split_scans(kinds[content], labels)
    train, val = set(content[split['train']]), set(content[split['val']])
    assert train and val
    assert not train & val


def test_no_picture_is_in_both_parts(out):
    contents = {
        split: {path.read_bytes() for path in (out / 'imagenet' / split).rglob('*.png')}
        for split in canvases.SPLITS
    }
    assert not contents['train'] & contents['val']
    # The canvases deal from the same split.
    for split in canvases.SPLITS:
        dealt = {annotation['scan'] for annotation in coco_truth(out, split)['annotations']}
        names = {path.stem for path in (out / 'imagenet' / split).rglob('*.png')}
        assert dealt
        assert {f'scan_{scan:04d}' for scan in dealt} <= names


# The bytes


def test_same_arguments_same_bytes(out, tmp_path):
    digits.write_digits(tmp_path, canvases=list(CANVASES), size=SIZE)
    assert fingerprint(tmp_path) == fingerprint(out)


def test_seed_changes_the_canvases_not_the_split(out, tmp_path):
    write_coco(tmp_path, canvases=CANVASES, size=SIZE, seed=1)
    pictures = {
        folder: {path.read_bytes() for path in (folder / 'coco').rglob('*.png')}
        for folder in (tmp_path, out)
    }
    assert len(pictures[out]) == sum(CANVASES)
    assert not pictures[tmp_path] & pictures[out]
    names = {path.stem for path in (out / 'imagenet' / 'val').rglob('*.png')}
    dealt = {annotation['scan'] for annotation in coco_truth(tmp_path, 'val')['annotations']}
    assert {f'scan_{scan:04d}' for scan in dealt} <= names


def test_a_canvas_does_not_depend_on_their_number():
    few = list(digits.scatter('train', 2, size=64))
    many = list(digits.scatter('train', 4, size=64))
    assert [canvas.scans for canvas in many[:2]] == [canvas.scans for canvas in few]
    for one, other in zip(few, many):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.masks, other.masks)


def test_no_scan_comes_twice_before_the_deck_is_through():
    dealt = [scan for canvas in digits.scatter('val', 50, size=64) for scan in canvas.scans]
    assert len(dealt) == len(set(dealt)) > 100


# The canvases


def test_masks_are_the_thresholded_scans(scans):
    images, labels = scans
    for canvas in digits.scatter('train', 6, size=SIZE):
        assert 1 <= len(canvas.scans) <= digits.DIGITS_PER_CANVAS[1]
        assert canvas.image.shape == (SIZE, SIZE, 3) and canvas.image.dtype == np.uint8
        assert canvas.masks.shape == (len(canvas.scans), SIZE, SIZE)
        assert canvas.labels == tuple(labels[list(canvas.scans)])
        for mask, scan in zip(canvas.masks, canvas.scans):
            sides = range(SIZE // 6, SIZE // 3 + 1)
            ink = Image.fromarray((images[scan].astype(int) * 255 // 16).astype(np.uint8))
            shapes = [np.asarray(ink.resize((s, s), Image.Resampling.BICUBIC)) for s in sides]
            shapes = [tight(shape >= digits.INK_THRESHOLD) for shape in shapes]
            assert any(np.array_equal(tight(mask), shape) for shape in shapes)


def tight(mask):
    rows, columns = np.nonzero(mask)
    return mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_ink_stands_out_and_boxes_do_not_meet():
    for canvas in digits.scatter('val', 6, size=SIZE):
        everything = canvas.masks.any(0)
        for mask in canvas.masks:
            brighter = canvas.image[mask].mean() - canvas.image[~everything].mean()
            assert brighter > INK_BRIGHTER_BY
        boxes = np.zeros((SIZE, SIZE), dtype=int)
        for mask in canvas.masks:
            rows, columns = np.nonzero(mask)
            boxes[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] += 1
        assert boxes.max() == 1


# What the libraries read


@pytest.mark.parametrize('kind', ['ImageNet', 'CustomDataset'])
@pytest.mark.parametrize('split', canvases.SPLITS)
def test_mmpretrain_reads_imagenet(out, scans, kind, split):
    datasets = pytest.importorskip('mmpretrain.datasets')
    from mmengine.registry import DefaultScope

    root = str(out / 'imagenet')
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        if kind == 'ImageNet':
            dataset = datasets.ImageNet(
                root, split=split, metainfo={'classes': digits.DIGITS_CLASSES}, pipeline=pipeline
            )
            assert tuple(dataset.CLASSES) == digits.DIGITS_CLASSES
        else:
            dataset = datasets.CustomDataset(root, data_prefix=split, pipeline=pipeline)
            assert tuple(dataset.CLASSES) == digits.DIGITS_FOLDERS

    images, labels = scans
    assert len(dataset) == len(digits.split_scans(images, labels)[split])
    for index in range(0, len(dataset), 25):
        item = dataset[index]
        scan = int(Path(item['data_samples'].img_path).stem.split('_')[1])
        assert item['data_samples'].gt_label.item() == labels[scan]
        assert tuple(item['inputs'].shape) == (3, 64, 64)
        picture = Image.fromarray(item['inputs'].numpy()[0]).resize((8, 8), Image.Resampling.BOX)
        likeness = np.corrcoef(np.asarray(picture).ravel(), images[scan].ravel())[0, 1]
        assert likeness > LIKENESS_AT_LEAST


@pytest.mark.parametrize(('split', 'count'), list(zip(canvases.SPLITS, CANVASES)))
def test_mmdet_reads_coco(out, scans, split, count):
    datasets = pytest.importorskip('mmdet.datasets')
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = datasets.CocoDataset(
            data_root=str(out / 'coco'),
            ann_file=f'annotations/instances_{split}2017.json',
            data_prefix={'img': f'{split}2017/'},
            metainfo={'classes': digits.DIGITS_CLASSES, 'palette': digits.DIGITS_PALETTE},
            filter_cfg={'filter_empty_gt': True, 'min_size': 32},
            pipeline=[
                {'type': 'LoadImageFromFile'},
                {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
                {'type': 'Resize', 'scale': (SIZE, SIZE), 'keep_ratio': True},
                {'type': 'RandomFlip', 'prob': 0.0},
                {'type': 'PackDetInputs'},
            ],
        )
    assert len(dataset) == count
    for item, canvas in zip(dataset, digits.scatter(split, count, SIZE)):
        truth = item['data_samples'].gt_instances
        assert np.array_equal(item['inputs'].numpy().transpose(1, 2, 0)[..., ::-1], canvas.image)
        assert truth.labels.tolist() == scans[1][list(canvas.scans)].tolist()
        assert np.array_equal(truth.masks.masks.astype(bool), canvas.masks)
        assert len(truth.bboxes) == len(canvas.masks)
        for box, mask in zip(truth.bboxes.tensor.tolist(), canvas.masks):
            rows, columns = np.nonzero(mask)
            wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == wanted


@pytest.mark.parametrize(('split', 'count'), list(zip(canvases.SPLITS, CANVASES)))
def test_pycocotools_agrees(out, split, count):
    coco = pytest.importorskip('pycocotools.coco')
    mask_api = pytest.importorskip('pycocotools.mask')
    api = coco.COCO(out / 'coco' / 'annotations' / f'instances_{split}2017.json')
    assert len(api.getImgIds()) == count
    assert [api.cats[i]['name'] for i in sorted(api.cats)] == list(digits.DIGITS_CLASSES)
    assert api.anns
    for annotation in api.anns.values():
        rle = api.annToRLE(annotation)
        assert annotation['area'] == mask_api.area(rle) == api.annToMask(annotation).sum()
        assert annotation['bbox'] == mask_api.toBbox(rle).tolist()


@pytest.mark.parametrize(
    'pixels',
    [
        [(0, 0)],
        [(2, 3)],
        [(0, 0), (1, 0), (2, 3)],
        [(row, column) for row in range(3) for column in range(4)],
    ],
    ids=['first', 'last', 'both ends', 'all'],
)
def test_run_lengths_at_the_borders(pixels):
    mask_api = pytest.importorskip('pycocotools.mask')
    mask = np.zeros((3, 4), dtype=bool)
    mask[tuple(zip(*pixels))] = True
    rle = mask_api.frPyObjects(canvases.run_lengths(mask), 3, 4)
    assert np.array_equal(mask_api.decode(rle), mask)
    assert canvases.box(mask) == mask_api.toBbox(rle).tolist()


def test_mmdet_metric_gives_the_truth_full_marks(out):
    evaluation = pytest.importorskip('mmdet.evaluation')
    mask_api = pytest.importorskip('pycocotools.mask')
    import torch

    path = out / 'coco' / 'annotations' / 'instances_val2017.json'
    metric = evaluation.CocoMetric(str(path), metric=['bbox', 'segm'])
    metric.dataset_meta = {'classes': digits.DIGITS_CLASSES}
    truth = coco_truth(out, 'val')
    samples = []
    for image in truth['images']:
        found = [a for a in truth['annotations'] if a['image_id'] == image['id']]
        boxes = torch.tensor([a['bbox'] for a in found], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks = [
            mask_api.decode(mask_api.frPyObjects(a['segmentation'], SIZE, SIZE)) for a in found
        ]
        instances = {
            'bboxes': boxes,
            'scores': torch.ones(len(found)),
            'labels': torch.tensor([a['category_id'] - 1 for a in found]),
            'masks': torch.from_numpy(np.stack(masks)).bool(),
        }
        samples.append(
            {'img_id': image['id'], 'ori_shape': (SIZE, SIZE), 'pred_instances': instances}
        )
    metric.process({}, samples)
    scores = metric.evaluate(len(samples))
    for name in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert scores[name] == pytest.approx(1, abs=PERFECT_MAP_TOLERANCE)


@pytest.mark.parametrize('own_names', [True, False], ids=['BaseSegDataset', 'CityscapesDataset'])
@pytest.mark.parametrize(('split', 'count'), list(zip(canvases.SPLITS, CANVASES)))
def test_mmseg_reads_cityscapes(out, split, count, own_names):
    datasets = pytest.importorskip('mmseg.datasets')
    from mmengine.registry import DefaultScope

    arguments = {
        'data_root': str(out / 'cityscapes'),
        'data_prefix': {'img_path': f'leftImg8bit/{split}', 'seg_map_path': f'gtFine/{split}'},
        'pipeline': [
            {'type': 'LoadImageFromFile'},
            {'type': 'LoadAnnotations'},
            {'type': 'PackSegInputs'},
        ],
    }
    with DefaultScope.overwrite_default_scope('mmseg'):
        if own_names:
            dataset = datasets.BaseSegDataset(
                img_suffix='_leftImg8bit.png',
                seg_map_suffix='_gtFine_labelTrainIds.png',
                metainfo={'classes': digits.SEG_CLASSES, 'palette': digits.SEG_PALETTE},
                **arguments,
            )
            assert tuple(dataset.metainfo['classes']) == digits.SEG_CLASSES
        else:
            dataset = datasets.CityscapesDataset(**arguments)
    assert len(dataset) == count
    for item, canvas in zip(dataset, digits.scatter(split, count, SIZE)):
        wanted = np.full((SIZE, SIZE), len(digits.DIGITS_CLASSES))
        for mask, label in zip(canvas.masks, canvas.labels):
            wanted[mask] = label
        assert np.array_equal(item['inputs'].numpy().transpose(1, 2, 0)[..., ::-1], canvas.image)
        assert np.array_equal(item['data_samples'].gt_sem_seg.data[0].numpy(), wanted)


def test_palettes_fit_the_classes():
    assert len(digits.DIGITS_CLASSES) == len(digits.DIGITS_PALETTE) == 10
    assert len(digits.SEG_CLASSES) == len(digits.SEG_PALETTE) == 11
    assert len({tuple(colour) for colour in digits.SEG_PALETTE}) == 11
    assert list(digits.DIGITS_FOLDERS) == sorted(digits.DIGITS_FOLDERS)


# Wrong arguments


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'formats': ['voc']}, "format 'voc' is unknown: want any of imagenet, coco, cityscapes"),
        ({'canvases': (4,)}, 'want two numbers'),
        ({'formats': ['coco'], 'canvases': (4, 0)}, 'number of canvases is 0'),
        ({'formats': ['coco'], 'size': 47}, 'canvas size is 47: want 48 to 4096'),
        ({'formats': ['cityscapes'], 'seed': -1}, 'seed is -1'),
        ({'formats': ['imagenet'], 'image_size': 7}, 'image size is 7: want at least 8'),
    ],
)
def test_wrong_arguments(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words) as raised:
        digits.write_digits(tmp_path, **arguments)
    assert '\n' not in str(raised.value)
    assert not any(tmp_path.iterdir())


def test_unknown_split():
    with pytest.raises(UserError, match="split 'test' is unknown: want one of train, val"):
        next(digits.scatter('test', 1))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / 'file').write_text('kept')
    with pytest.raises(UserError, match=r'cannot write .*choose another folder'):
        write_coco(tmp_path / 'file', **SMALL)
    assert (tmp_path / 'file').read_text() == 'kept'


# What is there already


@pytest.fixture
def small(tmp_path):
    """A folder with a small COCO set in it."""
    write_coco(tmp_path, **SMALL)
    return tmp_path


def test_second_run_does_nothing(small):
    before = fingerprint(small)
    marked = small / 'coco' / 'train2017' / 'mine.txt'
    marked.write_text('kept')
    assert write_coco(small, **SMALL, force=True) is False
    assert marked.read_text() == 'kept'
    marked.unlink()
    assert fingerprint(small) == before


def test_other_arguments_are_refused_unless_forced(small, tmp_path_factory):
    before = fingerprint(small)
    with pytest.raises(UserError, match=r'seed 0, wanted .*seed 5.*--force') as raised:
        write_coco(small, **SMALL, seed=5)
    assert '\n' not in str(raised.value)
    assert fingerprint(small) == before

    assert write_coco(small, **SMALL, seed=5, force=True) is True
    fresh = tmp_path_factory.mktemp('fresh')
    write_coco(fresh, **SMALL, seed=5)
    assert fingerprint(small) == fingerprint(fresh)
    assert [path.name for path in small.iterdir()] == ['coco']


def test_another_version_is_refused(small, monkeypatch):
    monkeypatch.setattr(digits, 'DATA_VERSION', digits.DATA_VERSION + 1)
    with pytest.raises(UserError, match=r'version 1, .*wanted version 2'):
        write_coco(small, **SMALL)


@pytest.mark.parametrize('force', [False, True])
@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('photo.jpg', 'somebody else wrote this'),
        (STAMP, '{broken'),
        (STAMP, '[1]'),
        (STAMP, '{"made_by": "mmorepa digits", "format": "imagenet"}'),
    ],
)
def test_what_is_not_ours_is_never_replaced(tmp_path, force, name, content):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco' / name).write_text(content)
    with pytest.raises(UserError, match='no digits set that mmorepa wrote'):
        digits.write_digits(tmp_path, **SMALL, force=force)  # imagenet comes first, and waits
    assert (tmp_path / 'coco' / name).read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ['coco']


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'coco').mkdir()
    assert write_coco(tmp_path, **SMALL) is True
    assert (tmp_path / 'coco' / STAMP).is_file()


def test_a_linked_set_is_rewritten_where_it_is(small, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (elsewhere / 'coco').symlink_to(small / 'coco')
    assert write_coco(elsewhere, **SMALL, seed=5, force=True) is True
    assert (elsewhere / 'coco').is_symlink()
    assert read_json(small / 'coco' / STAMP)['seed'] == 5


# Interrupted


def interrupt_at_picture(monkeypatch):
    saved = []

    def save(self, path, save=Image.Image.save):
        saved.append(path)
        if len(saved) > 1:
            raise KeyboardInterrupt
        save(self, path)

    monkeypatch.setattr(Image.Image, 'save', save)


def interrupt_at_rename(monkeypatch):
    def rename(self, target, rename=Path.rename):
        if self.suffix == '.new':
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', rename)


INTERRUPTS = [interrupt_at_picture, interrupt_at_rename]


@pytest.mark.parametrize('interrupt', INTERRUPTS)
@pytest.mark.parametrize('name', digits.FORMATS)
def test_interrupted_leaves_nothing(tmp_path, monkeypatch, interrupt, name):
    interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        digits.write_digits(tmp_path / 'new' / 'folder', [name], **SMALL)
    assert not any(tmp_path.iterdir())


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    'damage, told', [(Path.unlink, 'is missing'), (zero, 'is not what was written')]
)
@pytest.mark.parametrize('pattern', ['annotations/instances_val2017.json', 'val2017/*'])
def test_a_damaged_set_is_told(tmp_path, pattern, damage, told):
    write_coco(tmp_path, **SMALL)
    place = next((tmp_path / 'coco').glob(pattern))
    whole = place.read_bytes()
    damage(place)
    with pytest.raises(UserError, match=f'^{place} {told}: rewrite the set with --force'):
        write_coco(tmp_path, **SMALL)
    assert write_coco(tmp_path, **SMALL, force=True) is True
    assert place.read_bytes() == whole


def test_what_was_added_to_a_set_is_never_replaced(small):
    note = small / 'coco' / 'note.txt'
    note.write_text('kept')
    assert write_coco(small, **SMALL) is False
    with pytest.raises(UserError, match='note.txt is not of the digits set.*: move it away'):
        write_coco(small, **SMALL, seed=5, force=True)
    assert note.read_text() == 'kept'


@pytest.mark.parametrize('interrupt', INTERRUPTS)
def test_interrupted_rewrite_keeps_the_old_set(small, monkeypatch, interrupt):
    before = fingerprint(small)
    interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_coco(small, **SMALL, seed=5, force=True)
    assert fingerprint(small) == before
    assert [path.name for path in small.iterdir()] == ['coco']


# The command


def test_command_writes_says_refuses_and_forces(tool, tmp_path, capsys):
    coco = [str(tmp_path), '--formats', 'coco']
    assert tool(*coco) == 0
    assert capsys.readouterr().out == f'{tmp_path / "coco"}: written\n'
    written = [path for path in (tmp_path / 'coco').rglob('*.*') if path.name != STAMP]
    assert read_json(tmp_path / 'coco' / STAMP) == {
        'made_by': 'mmorepa digits', 'version': 1, 'format': 'coco',
        'canvases': [2, 1], 'size': 64, 'seed': 0,
        'files': {
            str(path.relative_to(tmp_path / 'coco')): zlib.crc32(path.read_bytes())
            for path in written
        },
    }  # fmt: skip

    assert tool(*coco) == 0
    assert 'there already, made with the same arguments' in capsys.readouterr().out

    assert tool(*coco, '--seed', '5') == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith('error: ') and captured.err.count('\n') == 1

    assert tool(*coco, '--seed', '5', '--force') == 0
    assert capsys.readouterr().out.endswith(': written\n')

    assert tool(str(tmp_path), '--formats', 'coco', 'cityscapes', '--seed', '5') == 0
    assert [line.split(': ')[1][:7] for line in capsys.readouterr().out.splitlines()] == [
        'there a', 'written',
    ]  # fmt: skip


def test_command_without_scikit_learn(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    assert tool(str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert 'run `pip install scikit-learn`' in error and error.count('\n') == 1
    assert not any(tmp_path.iterdir())


def test_command_stopped_by_ctrl_c(tmp_path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    process = subprocess.Popen(
        [sys.executable, TOOL, tmp_path, '--formats', 'coco', '--canvases', '100000', '1'],
        env=environment, stderr=subprocess.PIPE, text=True,
        # A shell has what it runs in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not list(tmp_path.rglob('*.png')) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith('interrupted') and 'Traceback' not in error
    assert not any(tmp_path.iterdir())
