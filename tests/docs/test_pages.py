"""Finding the commands in a page, and what is wrong with them."""

import sys

import pytest
from docs.dry import verdict
from docs.pages import Block, blocks, commands

from support import ROOT


def bash(text: str) -> Block:
    return Block('page.md', 10, 'bash', '', text)


@pytest.mark.parametrize(
    'text, expected',
    [
        ('make test   # all tests\n', [(10, ('make', 'test'), ())]),
        ('# nothing\n\nmake help\n', [(12, ('make', 'help'), ())]),
        ("a \\\n    'b c' \\\n    d\ne\n", [(10, ('a', 'b c', 'd'), ()), (13, ('e',), ())]),
        ('a {x,,y-}z\n', [(10, ('a', 'xz', 'z', 'y-z'), ())]),
        ('N=1 M=2 a --b=3\n', [(10, ('a', '--b=3'), (('N', '1'), ('M', '2')))]),
        ("a 'b; c' *.py\n", [(10, ('a', 'b; c', '*.py'), ())]),
    ],
    ids=['comment', 'lines', 'continued', 'braces', 'variables', 'quoted'],
)
def test_commands(text, expected):
    found = [(c.line, c.words, c.variables) for c in commands(bash(text))]
    assert found == expected


@pytest.mark.parametrize(
    'text, message',
    [
        ('a | b\n', 'page.md:10: one simple command a line'),
        ('a\nb > c\n', 'page.md:11: one simple command a line'),
        ('a $(b)\n', 'one simple command a line'),
        ("a 'b\n", 'bash cannot read'),
        ('a \\\n', 'ends with a backslash'),
    ],
    ids=['pipe', 'redirection', 'substitution', 'quote', 'end'],
)
def test_commands_that_no_test_could_take(text, message):
    with pytest.raises(ValueError, match=r'page\.md:1') as caught:
        commands(bash(text))
    assert message in str(caught.value)


def test_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr('docs.pages.ROOT', tmp_path)
    page = tmp_path / 'page.md'
    page.write_text('a\n```python title="x.py"\nb\n\nc\n```\n- d\n\n    ```\n    e\n    ```\n')
    assert blocks(page) == [
        Block('page.md', 3, 'python', 'x.py', 'b\n\nc\n'),
        Block('page.md', 10, '', '', 'e\n'),
    ]
    page.write_text('a\n```bash\nb\n')
    with pytest.raises(ValueError, match=r'page\.md:2.*not closed'):
        blocks(page)


DATA = 'configs/_base_/datasets/digits_bs64.py'


@pytest.mark.parametrize(
    'command, wrong',
    [
        (f'python tools/train.py {DATA} --amp', ''),
        (f'python tools/train.py {DATA} --ampp', 'unrecognized arguments: --ampp'),
        ('python tools/train.py', 'required: config'),
        ('python tools/train.py configs/digits/none.py', 'no config configs/digits/none.py'),
        ('python tools/none.py', 'no tools/none.py'),
        (f'python tools/train.py {DATA} --cfg-options train_dataloader.batch_size=1', ''),
        (f'python tools/train.py {DATA} --cfg-options a.b=1', f'{DATA} has no a'),
        ('python tools/train.py CONFIG [--amp] [--cfg-options KEY=VALUE ...]', ''),
        ('python tools/train.py CONFIG [--ampp]', 'has no option --ampp'),
        (f'tools/dist_train.sh {DATA} 2', ''),
        (f'tools/none.sh {DATA} 2', 'no tools/none.sh'),
        ('make help', ''),
        ('make nothing', 'cannot make nothing'),
        ('pip install -e .[det]', ''),
        ('pip install -e ./elsewhere', 'nothing to install at ./elsewhere'),
        ('pip install -r requirements/none.txt', 'no requirements/none.txt'),
        ('rm -r /', 'nothing is known of the program rm'),
    ],
)
def test_what_is_wrong_with_a_command_is_found(command, wrong, monkeypatch):
    monkeypatch.setattr(sys, 'argv', sys.argv)  # the parsers read it
    found = verdict(command.split())
    assert wrong in found and bool(wrong) == bool(found), found


def test_the_bash_blocks_of_this_repository_are_found():
    found = [
        c.words for b in blocks(ROOT / 'README.md') if b.language == 'bash' for c in commands(b)
    ]
    assert ('make', 'demo') in found
