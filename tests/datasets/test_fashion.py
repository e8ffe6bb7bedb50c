"""Fashion-MNIST, on files of its format with scans made here: source, sets, canvases."""

import gzip
import hashlib
import http.server
import importlib.util
import threading

import numpy as np
import pytest

import cli
from mmorepa.datasets import fashion
from mmorepa.errors import UserError
from support import ROOT

TOOL = ROOT / 'tools' / 'dataset_converters' / 'fashion_mnist.py'
#: Scans of each class.
TRAIN, TEST = 24, 3
CANVASES = (6, 3)
SIZE = 96
SMALL = {'canvases': (2, 1), 'size': 48}
LABELS = 't10k-labels-idx1-ubyte.gz'


def make_scans(count, seed):
    """Scans as Fashion-MNIST has them: something bright and textured on black, no two alike."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(10), count)).astype(np.uint8)
    scans = np.zeros((len(labels), 28, 28), np.uint8)
    for scan, label in zip(scans, labels):
        inner = scan[3 + label // 2 : 25 - label % 3, 5:23]
        inner[:] = rng.integers(fashion.CLOTH_LEVEL + 40, 256, inner.shape)
    return scans, labels


@pytest.fixture(scope='module')
def made():
    """``{part: (scans, labels)}``."""
    return {'train': make_scans(TRAIN, 0), 't10k': make_scans(TEST, 1)}


@pytest.fixture(scope='module')
def packed(made):
    """``{name: bytes}`` of the four files."""
    return {
        f'{part}-{kind}-ubyte.gz': gzip.compress(fashion._idx(values))
        for part, pair in made.items()
        for kind, values in zip(('images-idx3', 'labels-idx1'), pair)
    }


@pytest.fixture(scope='module', autouse=True)
def checksums(packed):
    """Those of the files made here."""
    sums = {
        name.removesuffix('.gz'): hashlib.sha256(gzip.decompress(content)).hexdigest()
        for name, content in packed.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion, 'CHECKSUMS', sums)
        yield


@pytest.fixture
def source(tmp_path, packed):
    """A folder with the four files."""
    fashion.read_files.cache_clear()
    folder = tmp_path / 'source'
    folder.mkdir()
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope='module')
def out(packed, tmp_path_factory):
    """All three sets, written once."""
    fashion.read_files.cache_clear()
    folder = tmp_path_factory.mktemp('fashion')
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    written = fashion.write_fashion(folder, canvases=CANVASES, size=SIZE, source=str(folder))
    assert written == {'mnist': True, 'coco': True, 'cityscapes': True}
    return folder


@pytest.fixture
def serve(source):
    """Starts a server of the source's files and gives its URL; ``cut`` cuts off its answers."""
    started = []

    def start(cut=0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                path = source / self.path.rpartition('/')[2]
                if not path.is_file():
                    return self.send_error(404)
                content = path.read_bytes()
                self.send_response(200)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - cut])

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{server.server_port}/data'

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')


def fingerprint(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


# The source


@pytest.mark.parametrize('slash', ['', '/'])
@pytest.mark.parametrize('served', [False, True], ids=['folder', 'URL'])
def test_reads_the_four_files(source, serve, no_proxy, made, served, slash):
    place = (serve() if served else str(source)) + slash
    for part, (scans, labels) in made.items():
        found = fashion.read_scans(place, part)
        assert np.array_equal(found[0], scans)
        assert np.array_equal(found[1], labels)


def missing(path):
    path.unlink()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-20])


def a_page(path):
    path.write_text('<html>moved</html>')


def other_content(path):
    path.write_bytes(gzip.compress(b'\0\0\x08\x01' + bytes(40)))


@pytest.mark.parametrize('served', [False, True], ids=['folder', 'URL'])
@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (missing, r'\(.*(404|No such file).*\): try again, install the Debian package'),
        (cut_off, r'\(Compressed file ended before .*\): try again'),
        (a_page, r'\(Not a gzipped file .*\): try again'),
        (other_content, r' is not the file of Fashion-MNIST: .* wanted \w{12}…; get it again'),
    ],
)
def test_a_bad_file_is_one_line(source, serve, no_proxy, tmp_path, damage, words, served):
    damage(source / LABELS)
    place = serve() if served else str(source)
    with pytest.raises(UserError, match=f'{place}/{LABELS}.*{words}') as raised:
        fashion.write_fashion(tmp_path / 'out', source=place, **SMALL)
    assert '\n' not in str(raised.value)
    assert not list(tmp_path.glob('out/*'))


def test_an_answer_that_is_cut_off(serve, no_proxy):
    with pytest.raises(UserError, match=r'\(IncompleteRead\(.*7 more expected\)\): try again'):
        fashion.read_files(serve(cut=7))


def test_a_dead_link(serve, no_proxy):
    # Nothing listens at port 9.
    with pytest.raises(UserError, match=r'cannot read http.*gz \(\[Errno \d+\] .*refused\): try'):
        fashion.read_files('http://127.0.0.1:9/data')


def test_the_package_comes_before_the_url(source, monkeypatch):
    monkeypatch.setattr(fashion, 'DEBIAN_FOLDER', str(source))
    assert fashion.default_source() == str(source)
    monkeypatch.setattr(fashion, 'DEBIAN_FOLDER', str(source / 'none'))
    assert fashion.default_source() == fashion.URL


# Classification


def test_held_out_scans_are_balanced_and_always_the_same(made):
    labels = made['train'][1]
    held = fashion.hold_out(labels)
    assert np.bincount(labels[held]).tolist() == [TRAIN // fashion.HELD_OUT] * 10
    assert np.array_equal(held, fashion.hold_out(labels))


@pytest.mark.parametrize('folder', ['full', 'held_out'])
@pytest.mark.parametrize('test_mode', [False, True])
def test_mmpretrain_reads_mnist(out, made, folder, test_mode):
    datasets = pytest.importorskip('mmpretrain.datasets')
    dataset = datasets.FashionMNIST(
        data_root=str(out / 'mnist' / folder),
        split='test' if test_mode else 'train',
        test_mode=test_mode,
        download=False,
    )
    assert tuple(dataset.CLASSES) == fashion.FASHION_CLASSES
    scans, labels = made['train']
    if folder == 'held_out':
        chosen = fashion.hold_out(labels) == test_mode
        scans, labels = scans[chosen], labels[chosen]
    elif test_mode:
        scans, labels = made['t10k']
    found = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert np.array_equal([info['img'] for info in found], scans)
    assert [int(info['gt_label']) for info in found] == labels.tolist()


# The canvases


@pytest.fixture(scope='module', params=['train', 'val'])
def split(request):
    return request.param


@pytest.fixture(scope='module')
def canvases(out, split):
    return list(fashion.scatter(split, 12, SIZE, source=str(out)))


def test_canvases_are_as_they_say(canvases, split, made):
    _, labels = made[fashion.PARTS[split]]
    for canvas in canvases:
        assert canvas.image.shape == (SIZE, SIZE, 3) and canvas.image.dtype == np.uint8
        assert canvas.masks.shape == (len(canvas.scans), SIZE, SIZE)
        assert 1 <= len(canvas.scans) <= fashion.SCANS_PER_CANVAS[1]
        assert canvas.labels == tuple(labels[list(canvas.scans)])
        assert canvas.masks.any((1, 2)).all()
        assert canvas.masks.sum(0).max() == 1  # of two that overlap the later one has the pixel


def test_clothes_cover_each_other_but_are_seen(canvases):
    """Cloth made here is a full rectangle: what is missing in its box is covered."""
    seen = []
    for canvas in canvases:
        for mask in canvas.masks:
            rows, columns = np.nonzero(mask)
            seen.append(mask.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))
    assert sum(part < 0.95 for part in seen) > 1
    assert min(seen) >= fashion.SEEN - 0.05


def test_sizes_differ(canvases):
    heights = [np.ptp(np.nonzero(mask)[0]) + 1 for canvas in canvases for mask in canvas.masks]
    assert max(heights) > 2 * min(heights)


def test_the_ground_is_no_giveaway(canvases):
    """Neither by its brightness nor by being smooth."""
    for canvas in canvases:
        ground = ~canvas.masks.any(0)
        assert canvas.image[ground].std() > 30
        assert canvas.image[ground].max() > 200


def test_a_canvas_depends_on_seed_and_split_alone(canvases, split, out):
    for one, other in zip(fashion.scatter(split, 2, SIZE, source=str(out)), canvases):
        assert np.array_equal(one.image, other.image)
        assert one.scans == other.scans
    again = next(fashion.scatter(split, 1, SIZE, seed=1, source=str(out)))
    assert not np.array_equal(again.image, canvases[0].image)


def test_no_scan_of_a_part_comes_twice_before_the_deck_is_through(out):
    dealt = [
        scan for canvas in fashion.scatter('train', 20, SIZE, source=str(out))
        for scan in canvas.scans
    ]  # fmt: skip
    assert len(dealt) == len(set(dealt)) > 40


def test_train_and_val_are_dealt_from_the_two_parts(out, made, monkeypatch):
    asked = []
    monkeypatch.setattr(
        fashion, 'read_scans', lambda source, part: asked.append(part) or made[part]
    )
    for split in ('train', 'val'):
        next(fashion.scatter(split, 1, SIZE, source=str(out)))
    assert asked == ['train', 't10k']


def test_mmdet_reads_coco(out):
    datasets = pytest.importorskip('mmdet.datasets')
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = datasets.CocoDataset(
            data_root=str(out / 'coco'),
            ann_file='annotations/instances_val2017.json',
            data_prefix={'img': 'val2017/'},
            metainfo={'classes': fashion.FASHION_CLASSES},
            pipeline=[
                {'type': 'LoadImageFromFile'},
                {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
                {'type': 'Resize', 'scale': (SIZE, SIZE), 'keep_ratio': True},
                {'type': 'PackDetInputs', 'meta_keys': ()},
            ],
        )
    assert len(dataset) == CANVASES[1]
    for item, canvas in zip(dataset, fashion.scatter('val', CANVASES[1], SIZE, source=str(out))):
        truth = item['data_samples'].gt_instances
        assert np.array_equal(item['inputs'].numpy().transpose(1, 2, 0)[..., ::-1], canvas.image)
        assert truth.labels.tolist() == list(canvas.labels)
        assert np.array_equal(truth.masks.masks.astype(bool), canvas.masks)


def test_mmseg_reads_cityscapes(out):
    datasets = pytest.importorskip('mmseg.datasets')
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = datasets.BaseSegDataset(
            data_root=str(out / 'cityscapes'),
            data_prefix={'img_path': 'leftImg8bit/val', 'seg_map_path': 'gtFine/val'},
            img_suffix='_leftImg8bit.png',
            seg_map_suffix='_gtFine_labelTrainIds.png',
            metainfo={'classes': fashion.SEG_CLASSES, 'palette': fashion.SEG_PALETTE},
            pipeline=[
                {'type': 'LoadImageFromFile'},
                {'type': 'LoadAnnotations'},
                {'type': 'PackSegInputs'},
            ],
        )
    assert len(dataset) == CANVASES[1]
    for item, canvas in zip(dataset, fashion.scatter('val', CANVASES[1], SIZE, source=str(out))):
        wanted = np.full((SIZE, SIZE), len(fashion.FASHION_CLASSES))
        for mask, label in zip(canvas.masks, canvas.labels):
            wanted[mask] = label
        assert np.array_equal(item['data_samples'].gt_sem_seg.data[0].numpy(), wanted)


# Arguments and places


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'formats': ['voc']}, "format 'voc' is unknown: want any of mnist, coco, cityscapes"),
        ({'canvases': (4,)}, 'want two numbers'),
        ({'canvases': (4, 0)}, 'number of canvases is 0'),
        ({'size': 47}, 'canvas size is 47: want 48 to 4096'),
        ({'seed': -1}, 'seed is -1'),
    ],
)
def test_wrong_arguments(tmp_path, source, arguments, words):
    with pytest.raises(UserError, match=words):
        fashion.write_fashion(tmp_path / 'out', source=str(source), **arguments)
    assert not (tmp_path / 'out').exists()


def test_unknown_split(source):
    with pytest.raises(UserError, match="split 'test' is unknown: want one of train, val"):
        next(fashion.scatter('test', 1, source=str(source)))


def test_same_arguments_same_bytes(out, tmp_path):
    fashion.write_fashion(tmp_path, canvases=CANVASES, size=SIZE, source=str(out))
    for name in fashion.FORMATS:
        assert fingerprint(tmp_path / name) == fingerprint(out / name)


def test_command_writes_says_refuses_and_forces(tmp_path, source, capsys):
    spec = importlib.util.spec_from_file_location('fashion_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    place = tmp_path / 'out'

    def run(*options, formats=('mnist', 'coco')):
        arguments = [str(place), '--formats', *formats, '--source', str(source), *options]
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: tool.main([*arguments, '--canvases', '2', '1', '--size', '48']))
        return ended.value.code, capsys.readouterr()

    code, said = run()
    assert (code, said.out) == (0, f'{place / "mnist"}: written\n{place / "coco"}: written\n')
    before = fingerprint(place)

    code, said = run()
    assert code == 0 and said.out.count('there already, made with the same arguments') == 2
    assert fingerprint(place) == before

    code, said = run('--seed', '5')
    assert code == 2 and 'seed 0, wanted' in said.err and said.err.count('\n') == 1
    assert fingerprint(place) == before

    # What does not depend on the seed stays.
    code, said = run('--seed', '5', '--force')
    assert code == 0 and said.out.endswith('coco: written\n') and 'mnist: there' in said.out

    (place / 'cityscapes').mkdir()
    (place / 'cityscapes' / 'mine.png').write_text('kept')
    code, said = run('--force', formats=['cityscapes'])
    assert code == 2 and 'is no fashion set that mmorepa wrote' in said.err
    assert (place / 'cityscapes' / 'mine.png').read_text() == 'kept'
