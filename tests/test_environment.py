"""The check of what is installed, on made-up environments that Python sees instead of its own."""

import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmorepa import environment

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / 'mmorepa' / 'environment.py'
CHECK = ROOT / 'tools' / 'check_env.py'

MODULE_OF = {dist.name: module for module, dists in environment.DISTS.items() for dist in dists}
TORCH = """
__version__ = '2.5.1'
class cuda:
    is_available = staticmethod(lambda: False)
"""

CORE = {'torch': '2.5.1'}
PRETRAIN = {**CORE, 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmpretrain': '1.2.0'}
DET = {**CORE, 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}
SEG = {
    **CORE,
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmsegmentation': '1.2.2',
    'ftfy': '6.3.1',
    'regex': '2026.1.1',
}
FORKS = {
    **CORE,
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'ftfy': '6.3.1',
    'regex': '2026.1.1',
}
MIM = {
    environment.DISTS[module][0].name: environment.DISTS[module][0].tried or '1.0'
    for module in environment.PARTS['mim']
}
# The fork's mim does without pkg_resources.
FORK_MIM = {**MIM, 'onedl-mim': '0.5.1', 'setuptools': '82.0.0'}
del FORK_MIM['openmim']


def without(dists, *names):
    return {name: number for name, number in dists.items() if name not in names}


def a_library():
    """The bytes of a small shared library that loads."""
    return Path(find_spec('markupsafe._speedups').origin).read_bytes()


OPS = {
    'good': a_library,
    # A name of the same length that no library offers, as when torch's were other ones.
    'other torch': lambda: a_library().replace(b'PyModule', b'PyMadule'),
    'cut short': lambda: a_library()[:40],
}


def make_site(folder, dists, ops=None):
    """A folder of packages none of which can be imported, torch apart."""
    for name, number in dists.items():
        info = folder / f'{name.replace("-", "_")}-{number}.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n')
        package = folder / MODULE_OF[name]
        package.mkdir()
        (package / '__init__.py').write_text(TORCH if name == 'torch' else 'raise RuntimeError')
    if ops == 'mmorepa':
        (folder / 'mmcv' / '_ext.py').write_text('raise RuntimeError')
    elif ops:
        (folder / 'mmcv' / f'_ext{EXTENSION_SUFFIXES[0]}').write_bytes(OPS[ops]())
    return folder


def require(site, part):
    """What ``require`` says where only a site and the standard library are there."""
    code = (
        'import runpy, sys\n'
        f'sys.path.insert(0, {str(site)!r})\n'
        'try:\n'
        f'    runpy.run_path({str(ENVIRONMENT)!r})["require"]({part!r})\n'
        'except ImportError as error:\n'
        '    print(error)\n'
    )
    command = [sys.executable, '-I', '-S', '-c', code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ('part', 'dists', 'ops'),
    [
        ('core', CORE, None),
        ('pretrain', PRETRAIN, None),
        ('pretrain', {**without(PRETRAIN, 'mmcv'), 'mmcv-lite': '2.1.0'}, None),
        ('pretrain', {**PRETRAIN, 'mmcv': '2.2.0'}, None),
        ('pretrain', {**without(PRETRAIN, 'mmengine'), 'mmengine-lite': '0.10.7'}, None),
        ('pretrain', FORKS, None),
        ('det', DET, 'good'),
        ('det', {**without(DET, 'mmcv'), 'mmcv-lite': '2.1.0'}, 'mmorepa'),
        ('det', {**DET, 'mmcv': '2.2.0rc1'}, 'good'),
        ('det', FORKS, 'good'),
        ('det', FORKS, 'mmorepa'),
        ('seg', SEG, 'good'),
        ('seg', FORKS, 'good'),
        ('mim', MIM, None),
        ('mim', FORK_MIM, None),
        ('configs', {'mmengine': '0.10.7', 'setuptools': '81.0.0'}, None),
        ('configs', {'mmengine': '0.11.0rc3'}, None),
        ('configs', {'onedl-mmengine': '0.10.12'}, None),
    ],
)
def test_what_serves_passes(tmp_path, part, dists, ops):
    assert require(make_site(tmp_path, dists, ops), part) == ''


@pytest.mark.parametrize(
    ('part', 'dists', 'ops', 'found', 'mend'),
    [
        ('core', {}, None, 'torch >=2.5.0: found nothing', 'pip install torch==2.14.1'),
        ('core', {'torch': '1.13.1'}, None, 'found torch 1.13.1', 'pip install torch==2.14.1'),
        ('det', without(DET, 'torch'), 'good', 'torch >=2.5.0: found nothing', 'torch==2.14.1'),
        ('pretrain', CORE, None, 'mmengine >=0.8.3,<1.0.0: found nothing', 'mmengine==0.10.7'),
        ('pretrain', without(PRETRAIN, 'mmpretrain'), None, 'found nothing', 'mmpretrain==1.2.0'),
        ('pretrain', {**PRETRAIN, 'mmengine': '0.7.4'}, None, 'mmengine 0.7.4', 'mmengine==0.10.7'),
        ('pretrain', {**PRETRAIN, 'mmcv': '2.0.0rc4'}, None, 'mmcv 2.0.0rc4', 'mmcv-lite==2.1.0'),
        ('det', without(DET, 'mmdet'), 'good', 'found nothing', 'pip install mmdet==3.3.0'),
        ('det', {**DET, 'mmdet': '4.0.0'}, 'good', 'found mmdet 4.0.0', 'mmdet==3.3.0'),
        (
            'det',
            {**DET, 'mmcv': '2.2.0'},
            'good',
            'mmcv >=2.0.0,<2.2.0: found mmcv 2.2.0',
            'pip uninstall -y mmcv && pip install mmcv-lite==2.1.0',
        ),
        (
            'det',
            {**without(DET, 'mmcv'), 'mmcv-full': '1.7.1'},
            'good',
            'found mmcv-full 1.7.1',
            'pip uninstall -y mmcv-full && pip install mmcv-lite==2.1.0',
        ),
        ('det', without(DET, 'mmcv'), None, 'found nothing', 'pip install mmcv-lite==2.1.0'),
        (
            'det',
            {**without(DET, 'mmcv'), 'mmcv-lite': '2.1.0'},
            None,
            'found mmcv-lite 2.1.0 with no operators',
            'python -m mmorepa.ops install',
        ),
        ('det', DET, None, 'mmcv 2.1.0 with no operators', 'python -m mmorepa.ops install'),
        (
            'det',
            DET,
            'other torch',
            'built for another torch (undefined symbol PyMad',
            'pip uninstall -y mmcv && pip install mmcv-lite==2.1.0 && '
            'python -m mmorepa.ops install',
        ),
        (
            'seg',
            SEG,
            'other torch',
            'built for another torch (undefined symbol PyMad',
            'mmcv-lite==2.1.0',
        ),
        ('det', DET, 'cut short', 'operators that do not load', 'pip uninstall -y mmcv && '),
        (
            'det',
            {**without(DET, 'mmcv'), 'onedl-mmcv': '2.3.6'},
            'good',
            'mmcv >=2.0.0,<2.2.0: found onedl-mmcv 2.3.6',
            'pip uninstall -y onedl-mmcv && pip install mmcv-lite==2.1.0',
        ),
        (
            'det',
            without(FORKS, 'onedl-mmcv'),
            None,
            'mmcv >=2.0.0,<3.0.0: found nothing',
            "MMCV_WITH_OPS=0 pip install 'onedl-mmcv>=2.0.0,<3.0.0'",
        ),
        (
            'det',
            FORKS,
            'other torch',
            'onedl-mmcv 2.3.6 with operators built for another torch',
            "pip uninstall -y onedl-mmcv && MMCV_WITH_OPS=0 pip install 'onedl-mmcv",
        ),
        (
            'det',
            {**FORKS, 'onedl-mmdetection': '3.4.0'},
            'good',
            'mmdet >=3.5.0,<4.0.0: found onedl-mmdetection 3.4.0',
            "pip install 'onedl-mmdetection>=3.5.0,<4.0.0'",
        ),
        (
            'seg',
            without(SEG, 'ftfy'),
            'good',
            'ftfy any version: found nothing',
            'pip install ftfy',
        ),
        ('mim', without(MIM, 'openmim'), None, 'found nothing', '--no-deps openmim==0.3.9'),
        ('mim', without(MIM, 'setuptools'), None, 'pkg_resources <82', "'setuptools<82'"),
        ('mim', {**MIM, 'setuptools': '82.0.0'}, None, 'setuptools 82.0.0', "'setuptools<82'"),
        ('configs', {'mmengine': '0.10.7'}, None, 'pkg_resources <82', "'setuptools<82'"),
        ('mim', without(MIM, 'model-index'), None, 'modelindex', 'pip install model-index'),
    ],
)
def test_what_does_not_serve_gets_one_line(tmp_path, part, dists, ops, found, mend):
    said = require(make_site(tmp_path, dists, ops), part)
    assert re.fullmatch(rf'mmorepa\.{part} needs \S+ .+: found .+; mend it with: .+\n', said)
    before, after = said.split('; mend it with: ')
    assert found in before
    assert mend in after


def test_a_folder_that_is_no_package_is_nothing(tmp_path):
    site = make_site(tmp_path, without(DET, 'mmdet'), 'good')
    (site / 'mmdet').mkdir()  # a clone beside the script, say
    assert 'mmdet >=3.2.0,<4.0.0: found nothing' in require(site, 'det')


def test_a_copy_without_metadata_serves(tmp_path):
    site = make_site(tmp_path, without(DET, 'mmdet'), 'good')
    (site / 'mmdet').mkdir()
    (site / 'mmdet' / '__init__.py').write_text('raise RuntimeError')
    assert require(site, 'det') == ''


def test_operators_in_the_place_of_compiled_ones_serve(tmp_path):
    site = make_site(tmp_path, {**without(DET, 'mmcv'), 'mmcv': '2.1.0'})
    assert 'mmcv._ext that loads' in require(site, 'det')
    (site / 'mmcv' / '_ext.py').touch()
    assert require(site, 'det') == ''


def test_this_environment_loads_its_operators():
    pytest.importorskip('mmcv._ext')
    assert environment.ops_problem() == ''


def test_the_versions_named_are_the_pinned_ones():
    pins = ''.join(file.read_text() for file in (ROOT / 'requirements').glob('*.txt'))
    for dist in (dist for dists in environment.DISTS.values() for dist in dists if dist.tried):
        assert re.search(rf'^{dist.name}=={re.escape(dist.tried)}\s', pins, re.MULTILINE), dist


def check_env(site, *parts):
    return subprocess.run(
        [sys.executable, '-S', str(CHECK), *parts],
        env={**os.environ, 'PYTHONPATH': str(site), 'COLUMNS': '200'},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ('dists', 'parts', 'status', 'said'),
    [
        (CORE, [], 0, 'for det: pip install mmdet==3.3.0'),
        (PRETRAIN, ['pretrain'], 0, 'mmpretrain 1.2.0'),
        (PRETRAIN, ['core', 'det'], 1, 'cannot work: det'),
        (CORE, ['pretrain', 'seg'], 1, 'cannot work: pretrain, seg'),
        ({}, [], 1, 'cannot work: core'),
        (PRETRAIN, ['segmentation'], 2, "no part 'segmentation', choose of: core, pretrain, det"),
    ],
)
def test_check_env_tells_and_exits(tmp_path, dists, parts, status, said):
    result = check_env(make_site(tmp_path, dists), *parts)
    assert said in result.stdout + result.stderr
    assert result.returncode == status


def test_check_env_finds_a_torch_that_does_not_import(tmp_path):
    site = make_site(tmp_path, CORE)
    (site / 'torch' / '__init__.py').write_text('raise OSError("libcudart.so.12: not there")')
    result = check_env(site)
    assert 'none that imports (OSError: libcudart.so.12: not there)' in result.stdout
    assert result.returncode == 1


def test_check_env_shows_the_same_with_rich(tmp_path):
    site = make_site(tmp_path, without(DET, 'mmdet'), 'good')
    plain = check_env(site).stdout
    for name in ('rich', 'pygments', 'markdown_it', 'mdurl'):
        (site / name).symlink_to(Path(find_spec(name).origin).parent)
    table = check_env(site).stdout
    assert '┃' in table and '┃' not in plain
    rows = [re.findall(r'[^\s│┃]+', line) for line in table.splitlines() if '│' in line]
    for line in plain.splitlines()[3:8]:
        assert line.split() in rows
