"""The site is built without a warning, holds everything, and needs nothing from the net."""

import re
import sys
from pathlib import Path

import pytest
from docs.pages import name, pages

from support import ROOT, run

#: What a page fetches while it is read.
FETCHED = re.compile(
    r'<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)="(https?:)?//[^"]*"[^>]*>|url\((https?:)?//'
)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp('site')
    command = ['-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', folder]
    output = run(ROOT, 'env', 'NO_MKDOCS_2_WARNING=1', sys.executable, '-W', 'ignore', *command)
    assert output == ''
    return folder


def page_of(site: Path, page: Path) -> Path:
    """Where a page of the repository is in the site."""
    inside = page.is_relative_to(ROOT / 'docs')
    path = page.relative_to(ROOT / 'docs') if inside else Path('repository', page.relative_to(ROOT))
    return site / (
        path.parent / 'index.html' if path.stem == 'README' else path.with_suffix('.html')
    )


@pytest.mark.parametrize('page', pages(), ids=name)
def test_every_page_is_there(site, page):
    assert page_of(site, page).is_file()


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = [
        f'{path.relative_to(site)}: {found[0]}'
        for path in sorted([*site.rglob('*.html'), *site.rglob('*.css')])
        for found in FETCHED.finditer(path.read_text(encoding='utf-8'))
        if 'rel="canonical"' not in found[0]
    ]
    assert not fetched, '\n'.join(fetched)


def test_files_of_the_repository_are_shown_as_they_are(site):
    config = 'configs/imagenet/orepa-resnet50_4xb64-120e_in1k.py'
    assert (site / 'repository' / f'{config}.txt').read_text() == (ROOT / config).read_text()
    shown = (site / 'parameters.html').read_text(encoding='utf-8')
    assert f'href="repository/{config}.txt"' in shown


def test_every_package_has_a_page_of_its_modules(site):
    for package in sorted(path.parent for path in (ROOT / 'mmorepa').glob('*/__init__.py')):
        shown = site / 'api' / f'{package.name}.html'
        assert shown.is_file(), f'mmorepa.{package.name} wants a page docs/api/{package.name}.md'
        text = shown.read_text(encoding='utf-8')
        for module in package.rglob('[!_]*.py'):
            name = '.'.join(module.relative_to(ROOT).with_suffix('').parts)
            assert f'id="{name}"' in text, module


def test_docstrings_are_turned_into_html(site):
    text = (site / 'api' / 'convs.html').read_text(encoding='utf-8')
    assert 'id="mmorepa.convs.orepa.block.OREPAConv2d.squeeze"' not in text  # it is inherited
    assert 'id="mmorepa.convs.generated.GeneratedConv2d.squeeze"' in text
    assert 'href="#mmorepa.convs.reparam.ReparamConv2d"' in text
    left_over = re.findall(r':(?:class|func|meth|mod|data|attr):', re.sub(r'<[^>]+>', '', text))
    assert not left_over
