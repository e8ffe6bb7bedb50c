"""mim and MMEngine find configs and tools in every form of install."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support import FINDS_PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PACKED = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'model-index.yml')
TREES = ('mmorepa', 'configs', 'tools')
CONFIG = 'packaging-probe.py'
SCRIPT = 'import sys\nprint("RUN", *sys.argv)\n'


class Install:
    """A virtual environment with mmorepa in one form; all else it sees in this one."""

    def __init__(self, folder, form):
        self.form = form
        self.source = copy_of_the_checkout(folder / 'source')
        self.folder = folder / 'environment'
        venv.create(self.folder, with_pip=False)
        self.python = self.folder / 'bin' / 'python'
        (self.site,) = self.folder.glob('lib/python*/site-packages')
        seen = [p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')]
        (self.site / 'seen.pth').write_text('\n'.join(seen))
        target = {'wheel': [self.source], 'editable': ['-e', self.source]}.get(form)
        self.pip_install(*(target or [self.build_sdist(folder / 'sdist')]))

    def run(self, *arguments):
        """Run Python in it, away from the checkout; give what it prints."""
        environ = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
        result = subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def pip_install(self, *what):
        self.run('-m', 'pip', 'install', '--no-deps', '--no-build-isolation', '--no-index', *what)

    def build_sdist(self, folder):
        code = 'import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]); '
        self.run('-c', code + 'build_meta.build_sdist(sys.argv[2])', self.source, folder)
        (sdist,) = folder.glob('*.tar.gz')
        return sdist

    @property
    def package(self):
        """Where the package has to be."""
        return (self.source if self.form == 'editable' else self.site) / 'mmorepa'


def copy_of_the_checkout(folder):
    """What packaging reads, with tools that only tell how they were called."""
    folder.mkdir(parents=True)
    for name in PACKED:
        shutil.copy(ROOT / name, folder)
    for name in TREES:
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    (folder / 'README.md').write_text('# mmorepa\n')
    (folder / 'configs' / CONFIG).write_text('')
    for name in ('train.py', 'test.py'):
        (folder / 'tools' / name).write_text(SCRIPT)
    return folder


@pytest.fixture(scope='module', params=['wheel', 'editable', 'sdist'])
def install(request, tmp_path_factory):
    return Install(tmp_path_factory.mktemp(request.param), request.param)


def files_below(folder):
    files = (f for f in Path(folder).rglob('*') if f.is_file() and f.suffix != '.pyc')
    return {str(f.relative_to(folder)) for f in files}


@pytest.mark.parametrize(
    'finder', [pytest.param('mim.utils', marks=FINDS_PACKAGES), 'mmengine.utils']
)
def test_the_package_is_found(install, finder):
    code = f'from {finder} import get_installed_path; print(get_installed_path("mmorepa"))'
    assert Path(install.run('-c', code).strip()) == install.package


def test_configs_tools_and_index_are_there(install):
    for name in ('configs', 'tools'):
        there = files_below(f'{install.package}/.mim/{name}/')
        # Only a checkout has an environment to set up, and targets.
        assert there == files_below(install.source / name) - (
            set() if install.form == 'editable' else {'setup_env.py', 'targets.py'}
        )
    index = (install.package / '.mim' / 'model-index.yml').read_text()
    assert index == (ROOT / 'model-index.yml').read_text()


@FINDS_PACKAGES
@pytest.mark.parametrize(
    ('command', 'rest'), [('train', []), ('test', ['--checkpoint', 'some.pth'])]
)
def test_mim_runs_the_tools(install, command, rest):
    said = install.run('-m', 'mim', command, 'mmorepa', CONFIG, *rest)
    (called,) = re.findall(r'^RUN (\S+) (\S+)(.*)$', said, re.MULTILINE)
    assert called[0] == str(install.package / '.mim' / 'tools' / f'{command}.py')
    assert Path(called[1]) == (install.package / '.mim' / 'configs' / CONFIG).resolve()
    assert ('some.pth' in called[2]) == bool(rest)


def test_python_imports_that_package(install):
    code = 'import importlib.util as u; print(u.find_spec("mmorepa").origin)'
    assert Path(install.run('-c', code).strip()) == install.package / '__init__.py'


def test_check_env_starts_from_the_package(install):
    assert 'pretrain' in install.run(install.package / '.mim' / 'tools' / 'check_env.py', '--help')


def test_nothing_of_openmmlab_comes_unasked(install):
    (found,) = importlib.metadata.distributions(name='mmorepa', path=[str(install.site)])
    needs = [need for need in found.requires if 'extra ==' not in need]
    assert needs == ['torch>=2.5']
    extras = {'pretrain', 'det', 'seg', 'mim', 'export', 'lab', 'docs', 'tests', 'all'}
    assert set(found.metadata.get_all('Provides-Extra')) == extras
    det = [need for need in found.requires if re.search('extra == .det.', need)]
    assert sorted(re.match('[a-z]+', need)[0] for need in det) == ['mmdet', 'mmengine']


def test_the_links_hold_wherever_the_checkout_lies():
    for link in (ROOT / 'mmorepa' / '.mim').iterdir():
        assert link.is_symlink() and not os.path.isabs(os.readlink(link))
        assert link.resolve() == ROOT / link.name


@pytest.mark.parametrize('stack', ['default', 'compiled', 'onedl'])
def test_a_lock_has_every_version_and_what_its_stack_asks_for(stack):
    folder = ROOT / 'requirements'
    lock = (folder / f'{stack}.txt').read_text()
    assert [
        line for line in lock.splitlines() if not re.match(r'[\w.-]+==[\w.]+( ; |$)', line)
    ] == []
    built_later = {'compiled': 'mmcv', 'onedl': 'onedl-mmcv'}.get(stack)
    for name in ('common', stack):
        asked = (folder / f'{name}.in').read_text()
        for need in re.findall(r'^(\w[\w-]*)(?:\[.*?\])?(==\S+)?', asked, re.MULTILINE):
            found = re.search(f'^{need[0]}{need[1] or "=="}', lock, re.MULTILINE)
            assert bool(found) == (need[0] != built_later), need


def test_the_hook_checks_the_style_that_the_stack_checks():
    lock = (ROOT / 'requirements' / 'default.txt').read_text()
    ruff = re.search(r'^ruff==(\S+)', lock, re.MULTILINE)[1]
    assert f'rev: v{ruff} ' in (ROOT / '.pre-commit-config.yaml').read_text()
