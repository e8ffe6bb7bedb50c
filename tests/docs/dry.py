"""Checks commands as far as that goes without running them: ``python dry.py COMMANDS.json``.

The file has a list of commands, each a list of words. Their arguments go through the parser of the
very program. Configs of this repository that they name have to exist, and to have the fields that
``--cfg-options`` changes. Writes a list with what is wrong with each command, empty where nothing
is, in place of the file.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config, utils

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / 'tools'))  # as it is for the programs there


def check(program: str, *words: str) -> None:
    """Check a command by what its first word is."""
    if program == 'python':
        check_python(*words)
    elif program == 'mim':
        check_mim(*words)
    elif program == 'pip':
        check_pip(*words)
    elif program == 'make':
        make = ['make', '--dry-run', *words]
        if subprocess.run(make, cwd=ROOT, capture_output=True).returncode:
            wrong(f'the Makefile cannot make {" ".join(words)}')
    elif program.startswith('tools/'):
        if not (ROOT / program).is_file():
            wrong(f'no {program}')
        check_config(words[0])
    elif program not in ('python3.11', 'source'):
        wrong(f'nothing is known of the program {program}')


def check_python(script: str, *words: str) -> None:
    """A program of this repository, or a package that is one."""
    if script == '-m':
        if importlib.util.find_spec(f'{words[0]}.__main__') is None:
            wrong(f'{words[0]} is no program')
        return
    if not (ROOT / script).is_file():
        wrong(f'no {script}')
    if any(word.startswith('[') or word in ('...', 'COMMAND', 'FORMAT') for word in words):
        check_synopsis(script, words)
        return
    given = parse(ROOT / script, words)
    for key in ('config', 'configs', 'subjects'):
        value = given.get(key) or []
        for config in [value] if isinstance(value, str) else value:
            if config.startswith('configs/'):
                check_config(config, given.get('cfg_options'))


def check_synopsis(script: str, words) -> None:
    """What a program takes, rather than a command: all its options have to be there."""
    code = (ROOT / script).read_text() + (ROOT / 'tools' / 'cli.py').read_text()
    for option in re.findall(r'--[\w-]+', ' '.join(words)):
        if f"'{option}'" not in code:
            wrong(f'{script} has no option {option}')


def check_mim(command: str, *words: str) -> None:
    """A command of mim, and the arguments that it hands on to the library's own tool."""
    cli = importlib.import_module(f'mim.commands.{command}').cli
    given = cli.make_context(command, list(words)).params
    if command not in ('train', 'test', 'gridsearch'):
        return
    library = importlib.util.find_spec(given['package'].replace('segmentation', 'seg'))
    if library is None:
        wrong(f'no library {given["package"]}')
    tool = 'test' if command == 'test' else 'train'
    arguments = [given['config'], *(['checkpoint.pth'] if command == 'test' else [])]
    path = Path(library.origin).parent / '.mim' / 'tools' / f'{tool}.py'
    options = parse(path, [*arguments, *given['other_args']])
    if '/' in given['config'] or command != 'test':
        check_config(given['config'], options.get('cfg_options'))


def check_pip(action: str, *words: str) -> None:
    """What is to be installed out of this folder."""
    for option, value in zip(words, words[1:]):
        if option in ('-r', '-c') and not (ROOT / value).is_file():
            wrong(f'no {value}')
        extras = re.fullmatch(r'\.(?:\[(.*)\])?', value)
        if option == '-e' and not extras:
            wrong(f'nothing to install at {value}')


def check_config(name: str, options: dict | None = None) -> None:
    """A config by its path, or by its name as mim takes it."""
    found = [ROOT / name] if '/' in name else list((ROOT / 'configs').rglob(name))
    if len(found) != 1 or not found[0].is_file():
        wrong(f'no config {name}')
    cfg = Config.fromfile(found[0]) if options else None
    for key in options or {}:
        node = cfg
        for parent in key.split('.')[:-1]:
            node = node[int(parent)] if isinstance(node, list) else node.get(parent)
            if node is None:
                wrong(f'{name} has no {parent} that {key} could be in')


def parse(program: Path, words) -> dict:
    """The arguments of a program as its own parser takes them; none where it has no such function.

    The parser says what it does not take, and ends the program.
    """
    names = runpy.run_path(str(program))
    if 'parse_args' not in names:
        return {}
    sys.argv = [str(program), *words]
    return vars(names['parse_args']())


class Wrong(Exception):
    """What is wrong with a command."""


def wrong(text: str) -> None:
    """Say what is wrong."""
    raise Wrong(text)


def verdict(words: list[str]) -> str:
    """What is wrong with a command, or nothing."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            check(*words)
    except Wrong as error:
        return str(error)
    except (Exception, SystemExit) as error:  # parsers end the program
        return f'{error!r} {said.getvalue()}'
    return ''


if __name__ == '__main__':
    # MMEngine reads all of a library's metafiles for each config that inherits from one of its.
    utils._get_cfg_metainfo = functools.cache(utils._get_cfg_metainfo)
    file = Path(sys.argv[1])
    file.write_text(json.dumps([verdict(words) for words in json.loads(file.read_text())]))
