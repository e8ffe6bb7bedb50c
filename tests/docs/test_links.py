"""Links of the documentation: those within the repository lead somewhere, others look right."""

import html
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from docs.pages import name, pages

from support import ROOT

#: Hosts that pages may link to. They are not asked: tests need no network.
HOSTS = {'arxiv.org', 'github.com'}
CODE = re.compile(r'^ *```.*?^ *```$|`[^`\n]+`', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)')
HEADING = re.compile(r'^#+ +(.*?)(?: +#+)?$', re.MULTILINE)
THREAD = re.compile(r'https://github\.com/([\w.-]+/[\w.-]+)(?:/(?:issues|pull)/(\d+))?')


def links(page: Path) -> list[tuple[int, str]]:
    """Line and target of every link in a page."""
    text = page.read_text(encoding='utf-8')
    # Code stays as long as it is, so that lines and places keep their numbers.
    plain = CODE.sub(lambda code: re.sub(r'[^\n]', ' ', code[0]), text)
    # Of a link whose text is code only that text is gone.
    return [(plain.count('\n', 0, found.start()) + 1, found[1]) for found in LINK.finditer(plain)]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r'^ *```.*?^ *```$', '', page.read_text('utf-8'), flags=re.DOTALL | re.MULTILINE)
    found, counts = set(), {}
    for heading in HEADING.findall(text):
        heading = re.sub(r'\[(.*?)\]\(.*?\)', r'\1', html.unescape(heading))
        slug = re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')
        count = counts[slug] = counts.get(slug, -1) + 1
        found.add(f'{slug}-{count}' if count else slug)
    return found


def problem(page: Path, target: str) -> str:
    """What is wrong with a link, or nothing."""
    if ':' in target.partition('/')[0]:
        parts = urlsplit(target)
        if parts.scheme != 'https':
            return 'is no https link'
        if parts.hostname not in HOSTS:
            return f'leads to {parts.hostname}, which is not in HOSTS of {Path(__file__).name}'
        if parts.hostname == 'github.com' and not THREAD.fullmatch(target):
            return 'is no repository, issue or pull request of GitHub'
        return ''
    path, _, anchor = target.partition('#')
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return 'does not exist'
    if not file.is_relative_to(ROOT):
        return 'leads out of the repository'
    if anchor and file.suffix != '.md':
        return 'has an anchor, but is no page'
    if anchor and anchor not in anchors(file):
        return f'has no such heading; it has {", ".join(sorted(anchors(file)))}'
    return ''


@pytest.mark.parametrize('page', pages(), ids=name)
def test_links(page):
    problems = [
        f'{name(page)}:{line}: {target} {wrong}'
        for line, target in links(page)
        if (wrong := problem(page, target))
    ]
    assert not problems, '\n'.join(problems)


@pytest.mark.parametrize('page', pages(), ids=name)
def test_threads_are_written_as_what_they_link_to(page):
    """[owner/name#number] with another number behind it would mislead."""
    written = r'\[([\w.-]+/[\w.-]+)#(\d+)\]\(([^)]+)\)'
    for owner, number, target in re.findall(written, page.read_text(encoding='utf-8')):
        assert THREAD.fullmatch(target).groups() == (owner, number), f'{name(page)}: {target}'


@pytest.mark.parametrize(
    'target, wrong',
    [
        ('faq.md', ''),
        ('faq.md#no-such-heading', 'no such heading'),
        ('method.md#the-kk-block', ''),
        ('missing.md', 'does not exist'),
        ('../mkdocs.yml#nav', 'is no page'),
        ('../../elsewhere', 'does not exist'),
        ('#mmorepa', ''),
        ('http://github.com/a/b', 'no https'),
        ('https://example.com', 'not in HOSTS'),
        ('https://github.com/a', 'no repository'),
        ('https://github.com/a/b/issues/1', ''),
    ],
)
def test_a_link_that_leads_nowhere_is_found(target, wrong):
    found = problem(ROOT / 'docs' / 'index.md', target)
    assert wrong in found and bool(wrong) == bool(found)


def test_links_are_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        'A [link](a.md), an ![image](b.png "title"), [`code`](c.md) and `[none](d.md)`.\n'
        '```\n[none](e.md)\n```\n[![both](f.png)](g.md)\n'
    )
    assert [target for _, target in links(page)] == ['a.md', 'b.png', 'c.md', 'g.md']
    assert [line for line, _ in links(page)] == [1, 1, 1, 5]


@pytest.mark.parametrize(
    'path', sorted({path for page in pages() for path in page.parent.glob('*.png')}), ids=name
)
def test_pictures_are_shown_somewhere(path):
    shown = {
        (page.parent / target).resolve()
        for page in pages()
        for _, target in links(page)
        if target.endswith('.png')
    }
    assert path in shown
