"""Every command of the documentation is one that works.

They run in one folder, in the order in which a reader meets them, with less to do (``smaller.py``).
Those that a test cannot run are in ``not_run.py``, and what can be checked of them is
(``dry.py``).
"""

import ast
import importlib
import json
import re
import shutil
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pytest
from docs.not_run import NOT_RUN, reason
from docs.pages import Block, Command, blocks, commands, pages

from command_server import Server
from support import ROOT

HERE = Path(__file__).parent
#: Pages whose Python is run as well; elsewhere it may use names that the reader has. The trainers
#: of other projects are not installed.
PYTHON_RUNS = re.compile(r'docs/(tutorial|howto/(?!other_trainers).*)\.md')
NUMBER = re.compile(r'\d+(?:[.,:/-]\d+)*(?:e[+-]?\d+)?')

BLOCKS = [block for page in pages() for block in blocks(page)]
STEPS = [
    step
    for block in BLOCKS
    for step in (commands(block) if block.language == 'bash' else [block])
    if isinstance(step, Command) or block.language == 'python'
]
COMMANDS = [step for step in STEPS if isinstance(step, Command)]
PYTHON = [step for step in STEPS if isinstance(step, Block)]
OUTPUTS = [
    (block, output)
    for block, output in pairwise(BLOCKS)
    if (block.page, block.language, output.language) == (output.page, 'bash', 'text')
]


def is_run(step: Command | Block) -> bool:
    """Whether a step is done for real."""
    if isinstance(step, Command):
        return reason(step.text) is None
    # A relative import is of a config that the reader has; tests/configs/test_new_style.py has one.
    is_inherited = 'from .' in step.text
    return bool(step.title or (PYTHON_RUNS.fullmatch(step.page) and not is_inherited))


class Reader:
    """Someone who does what the documentation says, in one folder.

    Args:
        folder (Path): Where; gets what a checkout has.
        server (Server): Runs programs.
    """

    def __init__(self, folder: Path, server: Server):
        (folder / 'tools').symlink_to(ROOT / 'tools')
        # A copy, so that no command writes into the checkout.
        shutil.copytree(ROOT / 'configs', folder / 'configs')
        self.folder = folder
        self.server = server
        self.done = 0
        self.results: dict[Command | Block, tuple[int, str]] = {}

    def result(self, step: Command | Block) -> tuple[int, str]:
        """Exit code and output of a step, after all that stand before it."""
        while step not in self.results:
            following = STEPS[self.done]
            self.done += 1
            if is_run(following):
                self.results[following] = self.do(following)
        return self.results[step]

    def do(self, step: Command | Block) -> tuple[int, str]:
        """Do one step."""
        if isinstance(step, Command):
            program, *words = step.words
            if program != 'python':
                return 1, f'only Python programs are run, this is {program}: see not_run.py'
            return self.run(HERE / 'smaller.py', *words, **dict(step.variables))
        path = self.folder / (step.title or 'block.py')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text, encoding='utf-8')
        return (0, '') if step.title else self.run(path)

    def run(self, *words: object, **variables: str) -> tuple[int, str]:
        """Run a Python program in the folder."""
        variables = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **variables}
        return self.server.run(self.folder, *words, **variables)

    @cached_property
    def verdicts(self) -> dict[Command, str]:
        """What is wrong with the commands that are not run, so far as can be told."""
        unrun = [command for command in COMMANDS if not is_run(command)]
        path = self.folder / 'unrun.json'
        path.write_text(json.dumps([command.words for command in unrun]))
        code, output = self.run(HERE / 'dry.py', path)
        assert code == 0, output
        return dict(zip(unrun, json.loads(path.read_text()), strict=True))


@pytest.fixture(scope='module')
def reader(tmp_path_factory, server):
    return Reader(tmp_path_factory.mktemp('reader'), server)


def shown(step: Command | Block, output: str) -> str:
    """What a failure shows."""
    return f'{step}: {step.text}\n{output[-3000:]}'


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_command(reader, command):
    if is_run(command):
        code, output = reader.result(command)
        assert code == 0, shown(command, output)
    else:
        assert not reader.verdicts[command], shown(command, reader.verdicts[command])


@pytest.mark.parametrize('block, output', OUTPUTS, ids=[str(output) for _, output in OUTPUTS])
def test_command_prints_what_the_page_says(reader, block, output):
    """But for numbers, which those of a smaller network are."""
    steps = [command for command in commands(block) if is_run(command)]
    assert steps, f'{output}: no command of the block before is run'
    printed = ''.join(reader.result(command)[1] for command in steps)
    known = {without_numbers(line) for line in printed.splitlines()}
    for line in output.text.splitlines():
        assert line.strip() in ('', '...') or without_numbers(line) in known, (
            f'{output}: {line.strip()!r} is not printed; printed is\n{printed[-3000:]}'
        )


def without_numbers(line: str) -> str:
    """A line of output with # for each number, and single spaces."""
    return ' '.join(NUMBER.sub('#', line).split())


@pytest.mark.parametrize('block', PYTHON, ids=str)
def test_python(reader, block):
    tree = ast.parse(block.text, f'{block}')
    if is_run(block):
        code, output = reader.result(block)
        assert code == 0, shown(block, output)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith('mmorepa'):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f'{block}: no {alias.name} in {node.module}'


def test_no_row_of_the_table_is_left_over():
    for row in NOT_RUN:
        assert any(re.match(row.pattern, command.text) for command in COMMANDS), row


def test_blocks_have_a_language_that_is_known():
    """So that no command hides in a block that nobody looks into."""
    for block in BLOCKS:
        assert block.language in ('', 'bash', 'bibtex', 'python', 'text'), f'{block}'
        first = block.text.split(maxsplit=1)[0]
        if block.language in ('', 'text'):
            assert first not in ('$', 'python', 'mim', 'make', 'pip'), f'{block}: commands are bash'
