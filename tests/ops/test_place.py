"""Where the operators are put, and what is said of names that are missing."""

import ast
import contextlib
import io
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mmcv.ops
import pytest
import torch

from mmorepa.errors import UserError
from mmorepa.ops import extension as OURS
from mmorepa.ops import install, state, uninstall
from mmorepa.ops.__main__ import main
from support import ROOT, in_fork

LOADER = """
import importlib
def load_ext(name, funcs):
    ext = importlib.import_module('mmcv.' + name)
    for fun in funcs:
        assert hasattr(ext, fun), f'{fun} miss in module {name}'
    return ext
"""


@pytest.fixture
def site(tmp_path):
    """A folder with an mmcv that has no compiled operators."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').write_text(LOADER)
    return tmp_path


@pytest.fixture
def folder(site):
    return site / 'mmcv'


def python(site, code, *more, check=True):
    """What a fresh process prints that finds packages in ``site`` first, and mmorepa."""
    command = [sys.executable, '-W', 'ignore', '-c', code]
    paths = ':'.join(map(str, [site, *(more or [ROOT])]))
    result = subprocess.run(
        command, cwd=site, env={'PYTHONPATH': paths}, capture_output=True, text=True
    )
    assert (result.returncode == 0) == check, result.stderr
    return result.stdout + result.stderr


def forked(site, code):
    """As ``python``, but forked from this process, which has imported the libraries, mmcv apart."""

    def run():
        for name in [name for name in sys.modules if name.partition('.')[0] == 'mmcv']:
            del sys.modules[name]
        sys.path.insert(0, str(site))
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, {})
        return output.getvalue()

    return in_fork(run)


def compile_into(folder):
    (folder / f'_ext{EXTENSION_SUFFIXES[0]}').write_bytes(b'a library')


class TestInstall:
    def test_and_uninstall(self, folder):
        before = sorted(folder.iterdir())
        assert state(folder) == 'nothing'
        assert install(folder) == folder / '_ext.py'
        assert state(folder) == 'mmorepa'
        assert uninstall(folder)
        assert state(folder) == 'nothing'
        assert sorted(folder.iterdir()) == before

    def test_twice(self, folder):
        install(folder)
        text = (folder / '_ext.py').read_text()
        (folder / '_ext.py').write_text(text.splitlines(keepends=True)[0] + 'an older version')
        install(folder)
        assert (folder / '_ext.py').read_text() == text
        assert uninstall(folder) and not uninstall(folder)

    def test_refuses_over_a_compiled_module(self, folder):
        compile_into(folder)
        assert state(folder) == 'compiled'
        with pytest.raises(UserError, match='compiled operators'):
            install(folder)
        assert not (folder / '_ext.py').exists()
        assert not uninstall(folder)

    def test_a_compiled_module_that_comes_later_wins(self, folder):
        install(folder)
        compile_into(folder)
        assert state(folder) == 'compiled'
        assert uninstall(folder)

    def test_leaves_somebody_else_s_file(self, folder):
        (folder / '_ext.py').write_text('nms = None\n')
        assert state(folder) == 'other'
        for function in (install, uninstall):
            with pytest.raises(UserError, match='not written by mmorepa'):
                function(folder)
        assert (folder / '_ext.py').read_text() == 'nms = None\n'

    def test_nothing_half_written_is_left(self, folder, monkeypatch):
        def fail(*args):
            raise PermissionError(13, 'Permission denied')

        monkeypatch.setattr('os.replace', fail)
        with pytest.raises(UserError, match=r'_ext\.py could not be written \(Permission denied\)'):
            install(folder)
        assert [path.name for path in folder.iterdir()] == ['__init__.py']


class TestInstalled:
    USE = (
        'import mmcv; ext = mmcv.load_ext("_ext", ["nms", "tin_shift_forward"]); '
        'from mmcv import _ext; import mmcv._ext; assert ext is _ext is mmcv._ext; '
        'import torch; print(ext.nms(torch.ones(1, 4), torch.ones(1), 0.5, 0).tolist())'
    )

    def test_serves_what_is_imported(self, site, folder):
        install(folder)
        assert forked(site, self.USE) == '[0]\n'

    def test_without_mmorepa_says_what_to_do(self, site, folder):
        install(folder)
        # A mmorepa that is no package stands for none, also beside an editable install.
        (site / 'mmorepa.py').touch()
        output = python(site, 'import mmcv._ext', site, check=False)
        line = output.splitlines()[-1]
        assert line == (
            f'ImportError: {folder / "_ext.py"} needs mmorepa, found none that has operators: '
            'pip install mmorepa, or delete this file'
        )

    def test_another_error_is_not_hidden(self, site, folder):
        install(folder)
        (site / 'mmorepa/ops').mkdir(parents=True)
        (site / 'mmorepa/__init__.py').touch()
        (site / 'mmorepa/ops/extension.py').write_text('import a_module_that_is_not_there')
        output = python(site, 'import mmcv._ext', site, check=False)
        assert output.splitlines()[-1].startswith('ModuleNotFoundError')


class TestProvide:
    def test_for_a_process(self, site):
        code = 'import mmorepa.ops as o; print(o.provide(), o.provide()); ' + TestInstalled.USE
        assert forked(site, code) == 'True False\n[0]\n'
        assert not (site / 'mmcv/_ext.py').exists()

    def test_touches_no_other(self, site, folder):
        (folder / '_ext.py').write_text('nms = None\n')
        code = 'import mmorepa.ops as o; print(o.provide()); import mmcv._ext as e; print(e.nms)'
        assert forked(site, code) == 'False\nNone\n'

    def test_touches_no_compiled_one(self, site, folder):
        compile_into(folder)
        code = 'import mmorepa.ops as o, sys; print(o.provide(), "mmcv._ext" in sys.modules)'
        assert forked(site, code) == 'False False\n'

    def test_mmcv_finds_it(self):
        # Where the environment has compiled ones, those.
        assert mmcv.utils.ext_loader.check_ops_exist()

    @pytest.mark.parametrize('part', ['det', 'seg'])
    def test_by_the_import_points(self, part):
        code = f'import mmorepa.{part}, sys, mmcv.ops; assert "mmcv._ext" in sys.modules'
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', code],
            check=True,
            env={'PYTHONPATH': str(ROOT)},
            cwd='/',
        )


class TestCommand:
    @pytest.fixture
    def command(self, folder, monkeypatch, capsys):
        """Runs the command where the environment's mmcv is that of ``folder``."""
        monkeypatch.setattr('mmorepa.ops.place._mmcv', lambda: folder)

        def run(what, code=0):
            monkeypatch.setattr('sys.argv', ['mmorepa.ops', what])
            assert main() == code
            return ''.join(capsys.readouterr()).strip()

        return run

    def test_says_what_is_there(self, command, folder):
        assert command('status').startswith('no operators are there')
        assert command('install') == f'{folder / "_ext.py"} is written'
        assert command('status').startswith('operators of mmorepa are there')
        assert command('uninstall') == 'removed'
        assert command('uninstall') == 'nothing to remove'

    def test_refuses_in_one_line(self, command, folder):
        compile_into(folder)
        assert command('status').startswith("mmcv's compiled operators are there")
        output = command('install', code=2)
        assert output.startswith(f'error: {folder} has compiled operators')
        assert len(output.splitlines()) == 1

    def test_in_a_process(self, site):
        output = python(
            site, 'import runpy; runpy.run_module("mmorepa.ops", {}, "__main__")', check=False
        )
        assert 'usage: python -m mmorepa.ops' in output


def names_that_mmcv_loads():
    """Every name that a module of mmcv.ops wants from the compiled one."""
    for path in Path(mmcv.ops.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                yield from ast.literal_eval(node.args[1])


NAMES = sorted(set(names_that_mmcv_loads()))
MISSING = [name for name in NAMES if name not in OURS.__all__]


def test_mmcv_s_names_are_found():
    assert len(NAMES) > 100
    assert set(OURS.__all__) <= set(NAMES)


@pytest.mark.parametrize('name', MISSING)
def test_a_missing_operator_says_so(name):
    assert hasattr(OURS, name)
    with pytest.raises(NotImplementedError) as info:
        getattr(OURS, name)(torch.zeros(1), size=1)
    message = str(info.value)
    assert message.startswith(f'{name} is an operator that mmorepa.ops does not have')
    assert 'compiled mmcv' in message and 'docs/operators.md' in message
    assert len(message.splitlines()) == 1


def test_private_names_are_not_operators():
    assert not hasattr(OURS, '__path__')
