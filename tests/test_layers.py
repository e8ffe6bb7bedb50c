"""Imports go down the layers only: a folder knows those before it in the table, and no others."""

import ast
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / 'mmorepa'

#: The layers, lowest first; those in one row do not know each other. A folder that has a table of
#: its own below is looked into.
LAYERS = [
    ['errors', 'version', 'environment', 'repvgg_archs', 'named_configs'],
    ['config_files', 'config_types', 'convs', 'datasets', 'writing'],
    ['checkpoints', 'ops'],
    ['backbones'],
    ['pretrain', 'det', 'seg', 'registry'],
    ['engine'],
    ['deploy'],
    ['lab'],
    ['__init__'],
]
WITHIN = {
    'convs': [[''], ['orepa'], ['blocks'], ['convert'], ['__init__']],
    'checkpoints': [[''], ['official'], ['__init__']],
    'deploy': [[''], ['export'], ['quantization'], ['__init__']],
    'lab': [[''], ['benchmark', 'comparison'], ['analysis'], ['__init__']],
}
#: What the convolutions and the operators may need besides Python's own modules.
EXTERNAL = {'convs': {'torch'}, 'ops': {'torch', 'torchvision'}}


def imports(path: Path):
    """The modules that a file imports, absolute, wherever in it that is."""
    package = ['mmorepa', *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *filter(None, [node.module])])
            # ``from . import name`` may mean a module or what a package has.
            for alias in node.names:
                inner = f'{module}.{alias.name}'
                yield inner if location(inner) else module


def location(module: str) -> Path | None:
    """The file of a module of this package."""
    name, _, rest = module.partition('.')
    if name != 'mmorepa':
        return None
    stem = PACKAGE.joinpath(*rest.split('.')) if rest else PACKAGE
    return next((p for p in (stem.with_suffix('.py'), stem / '__init__.py') if p.is_file()), None)


def part_of(path: Path, folder: str = '') -> str:
    """Which part of a folder's table a file belongs to."""
    first, *rest = path.relative_to(PACKAGE / folder).parts
    if rest or not folder:
        return first.removesuffix('.py')
    return '__init__' if first == '__init__.py' else ''


def upward(table: list[list[str]], folder: str = ''):
    """All imports within a folder that do not go down its table."""
    rank = {part: i for i, row in enumerate(table) for part in row}
    for path in sorted((PACKAGE / folder).rglob('*.py')):
        part = part_of(path, folder)
        for module in imports(path):
            other = location(module)
            if other is None or not other.is_relative_to(PACKAGE / folder):
                continue
            known = part_of(other, folder)
            if known != part and not rank[known] < rank[part]:
                yield f'{path.relative_to(ROOT)} imports {module}'


def test_every_part_has_a_layer():
    found = {
        p.name.removesuffix('.py') for p in PACKAGE.iterdir() if not p.name.startswith(('.', '__p'))
    }
    assert found == {part for row in LAYERS for part in row}


def test_the_picture_shows_the_table():
    drawn = runpy.run_path(str(ROOT / 'docs/layers.py'))['LAYERS']
    rows = [sorted(', '.join(layer).split(', ')) for layer in drawn]
    assert rows == [sorted(row) for row in LAYERS if row != ['__init__']]


@pytest.mark.parametrize('folder', ['', *WITHIN])
def test_imports_go_down(folder):
    assert list(upward(WITHIN[folder] if folder else LAYERS, folder)) == []


def test_the_root_is_not_imported_from_inside():
    # ``from mmorepa import …`` inside of it would be a circle that Python happens to allow.
    inside = [p for p in PACKAGE.rglob('*.py') if location('mmorepa') in map(location, imports(p))]
    assert inside == []


def test_no_two_modules_have_one_name():
    names = [path.name for path in PACKAGE.rglob('*.py') if path.name != '__init__.py']
    assert [name for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize('folder', EXTERNAL)
def test_a_layer_needs_no_other_library(folder):
    for path in (PACKAGE / folder).rglob('*.py'):
        needed = {module.partition('.')[0] for module in imports(path)}
        assert needed - sys.stdlib_module_names - {'mmorepa'} <= EXTERNAL[folder], path


@pytest.mark.parametrize(
    'line, wrong',
    [
        ('from ..engine import run', True),
        ('from mmorepa.lab import report', True),
        ('def f():\n    from ..backbones.repvgg_network import RepVGG', True),
        ('from ..convs import kernels', False),
        ('import torch', False),
    ],
)
def test_the_rule_sees(line, wrong, tmp_path, monkeypatch):
    package = tmp_path / 'mmorepa'
    for name in ('checkpoints', 'engine', 'lab', 'backbones', 'convs'):
        (package / name).mkdir(parents=True)
        for module in ('__init__', 'run', 'report', 'repvgg_network', 'kernels'):
            (package / name / f'{module}.py').touch()
    (package / 'checkpoints/files.py').write_text(line)
    monkeypatch.setattr(sys.modules[__name__], 'PACKAGE', package)
    monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
    assert bool(list(upward(LAYERS))) == wrong
