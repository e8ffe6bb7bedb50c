"""What the documentation holds: its pages, their blocks of code, the commands in these."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

FENCE = re.compile(r'^( *)```(.*)$')


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page (str): The page's path in the repository.
        line (int): Of its first line of code in the page, from 1.
        language (str): 'bash', 'python', ..., or empty.
        title (str): What ``title="..."`` says behind the language, or empty.
        text (str): The code.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self):
        return f'{self.page}:{self.line}'


@dataclass(frozen=True)
class Command:
    """A command of a bash block.

    Attributes:
        page (str): As of the block, like the line, which is the command's own.
        line (int): See above.
        text (str): As it stands there, but in one line, without comment and variables.
        words (tuple[str, ...]): What bash makes of it.
        variables (tuple[tuple[str, str], ...]): Those set in front of it.
    """

    page: str
    line: int
    text: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]

    def __str__(self):
        return f'{self.page}:{self.line}'


def pages() -> list[Path]:
    """All pages, as a reader meets them: the README, the site, the configs, how to contribute."""
    docs = sorted((ROOT / 'docs').rglob('*.md'), key=reading_order)
    configs = sorted((ROOT / 'configs').rglob('README.md'))
    return [ROOT / 'README.md', *docs, *configs, ROOT / 'CONTRIBUTING.md']


def reading_order(page: Path) -> tuple:
    """By the place in the navigation of the site; pages that are not in it come last."""
    name = page.relative_to(ROOT / 'docs').as_posix()
    place = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8').find(f'- {name}')
    return place < 0, place, name


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: If one is not closed.
    """
    found, start = [], None
    for number, line in enumerate(page.read_text(encoding='utf-8').splitlines(), 1):
        fence = FENCE.match(line)
        if start is None and fence:
            start, lines = (number + 1, *fence.groups()), []
        elif start is not None and fence and not fence[2]:
            first, indent, info = start
            title = re.search(r'title="(.*?)"', info)
            text = ''.join(f'{line.removeprefix(indent)}\n' for line in lines)
            found.append(
                Block(name(page), first, info.split(' ')[0], title[1] if title else '', text)
            )
            start = None
        elif start is not None:
            lines.append(line)
    if start is not None:
        raise ValueError(f'{name(page)}:{start[0] - 1}: this block of code is not closed')
    return found


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def commands(block: Block) -> list[Command]:
    """The commands of a bash block.

    Raises:
        ValueError: If bash cannot read one, or it is more than one simple command.
    """
    found, parts = [], []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if not parts:
            first = number
        parts.append(line.removesuffix('\\'))
        if line.endswith('\\'):
            continue
        text, parts = ' '.join(part.strip() for part in parts), []
        words = split(text, f'{block.page}:{first}')
        if words:
            variables = []
            while re.match(r'\w+=', words[0]):
                variables.append(tuple(words.pop(0).split('=', 1)))
            text = re.sub(r'^(\w+=\S+ )+|\s+#.*', '', text)
            found.append(Command(block.page, first, text, tuple(words), tuple(variables)))
    if parts:
        raise ValueError(f'{block}: the last line of this block ends with a backslash')
    return found


def split(text: str, place: str) -> list[str]:
    """The words of a command, as bash expands them, and nothing for a comment.

    Raises:
        ValueError: See :func:`commands`.
    """
    script = 'set -f; words() { printf "%s\\0" "$@"; }; words ' + text
    if re.search(r'[|&;<>`]|\$\(', re.sub(r"'[^']*'|\"[^\"]*\"|#.*", '', text)):
        raise ValueError(f'{place}: one simple command a line, so that a test can take it: {text}')
    result = subprocess.run(['bash', '-c', script], text=True, capture_output=True)
    if result.returncode:
        raise ValueError(f'{place}: bash cannot read {text}: {result.stderr.strip()}')
    return [word for word in result.stdout.split('\0')[:-1] if word]
