"""What the commands make of errors and signals: one line and an exit code."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import cli
from mmorepa.errors import UserError
from mmorepa.writing import written_whole
from support import ROOT

LONG = 'n' * 300
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Undo what a command does to the process, and forget what it was told."""
    monkeypatch.setattr(cli, '_received', [])
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell that starts the tests in the background has them ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def open_too_long(tmp_path):
    (tmp_path / LONG).open()


def file_for_a_folder(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'file' / 'work_dir').mkdir()


def disk_full(tmp_path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / 'out'))


def worker(tmp_path):
    raise FileNotFoundError("Caught FileNotFoundError in a worker\nTraceback:\n  no file 'a.png'")


def user_error(tmp_path):
    raise UserError('found, wanted, do')


def interrupt(tmp_path):
    raise KeyboardInterrupt


def terminate(tmp_path):
    os.kill(os.getpid(), signal.SIGTERM)


def hang_up(tmp_path):
    os.kill(os.getpid(), signal.SIGHUP)


def library_after_a_signal(tmp_path):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except BaseException:
        raise SyntaxError('Failed to format the config file') from None


def too_much(tmp_path):
    torch.empty(2**50)


@pytest.mark.parametrize(
    'main, code, line',
    [
        (user_error, 2, 'error: found, wanted, do'),
        (open_too_long, 2, 'error: a name of 3.. characters is too long for the disk'),
        (file_for_a_folder, 2, 'error: Not a directory: .*work_dir'),
        (disk_full, 2, 'error: the disk is full under .*out: free some space'),
        (worker, 2, "error:   no file 'a.png'"),
        (interrupt, 130, 'interrupted'),
        (terminate, 143, 'ended by SIGTERM'),
        (hang_up, 129, 'ended by SIGHUP'),
        (library_after_a_signal, 130, 'interrupted'),
        (too_much, 2, 'error: this takes more memory than there is'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_one_line_and_an_exit_code(main, code, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as info:
        cli.run(lambda: main(tmp_path))
    assert info.value.code == code
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert re.match(line, said)


@pytest.mark.parametrize('words, empty', [(['a', ''], "''"), (['--out='], "'--out='")])
def test_empty_arguments(words, empty, monkeypatch, capsys):
    """As of a variable of the shell that is not set; a field of a config may be empty."""
    monkeypatch.setattr(sys, 'argv', ['train.py', *words])
    with pytest.raises(SystemExit) as info:
        cli.run(lambda: pytest.fail('it ran'))
    assert info.value.code == 2
    assert capsys.readouterr().err.startswith(f'error: {empty} is an empty argument')
    monkeypatch.setattr(sys, 'argv', ['train.py', '--cfg-options', 'work_dir='])
    with pytest.raises(SystemExit) as info:
        cli.run(lambda: 3)
    assert info.value.code == 3


@pytest.mark.parametrize('text', ['0', '-1', 'nan', 'inf'])
def test_a_factor_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match='wanted a finite number above 0'):
        cli.factor(text)


#: What each command needs to get as far as its imports.
COMMANDS = [
    'train.py config.py',
    'test.py config.py a.pth',
    'convert.py config.py a.pth b.pth',
    'export.py config.py a.pth b.onnx',
    'quantize.py config.py a.pth b.onnx',
    'predict.py config.py a.pth a.png --out out',
    'import_official.py a.pth b.pth',
    'analyze.py branches config.py',
    'benchmark.py r18 --out out',
    'compare.py config.py --out out --seeds 0',
    'demo.py',
    'dataset_converters/digits.py out',
    'dataset_converters/fashion_mnist.py out',
]
#: A torch that is interrupted while it is imported, by the signal that the environment names.
INTERRUPTED = (
    "import os; os.kill(os.getpid(), int(os.environ['NUMBER'])); raise ImportError('half')"
)


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize('command', COMMANDS)
def test_a_signal_while_libraries_are_imported(command, number, code, tmp_path):
    (tmp_path / 'torch.py').write_text(INTERRUPTED)
    tool, *arguments = command.split()
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, *arguments],
        env={**os.environ, 'PYTHONPATH': str(tmp_path), 'NUMBER': str(int(number))},
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        text=True,
        capture_output=True,
    )
    assert (result.returncode, result.stderr.count('\n')) == (code, 1), result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != '__pycache__'] == ['torch.py']


#: A command that is ended, and gets another signal while it exits.
ENDED_TWICE = """
import atexit, os, signal, sys
sys.path.insert(0, sys.argv[1])
import cli

def complain(number, frame):
    raise RuntimeError('a worker was killed')

signal.signal(signal.SIGCHLD, complain)
atexit.register(lambda: os.kill(os.getpid(), int(sys.argv[2])))
cli.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
"""


@pytest.mark.parametrize(
    'number, code',
    [(signal.SIGCHLD, 143), (signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)],
)
def test_a_second_signal_while_it_exits(number, code):
    result = subprocess.run(
        [sys.executable, '-c', ENDED_TWICE, ROOT / 'tools', str(int(number))],
        text=True,
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (code, 'ended by SIGTERM\n')


def test_sigterm_leaves_no_half_written_file(tmp_path):
    def main():
        with written_whole(tmp_path / 'out.pth') as temporary:
            temporary.write_text('half')
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        cli.run(main)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_code_keeps_its_traceback():
    def main():
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        cli.run(main)


@pytest.mark.parametrize(
    'kind, text, value', [(cli.count, '0', 0), (cli.count, '3', 3), (cli.positive, '1', 1)]
)
def test_numbers(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize('kind, text', [(cli.count, '-3'), (cli.positive, '0')])
def test_numbers_that_are_too_small(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f'^{text} is too few, wanted at least'):
        kind(text)


@pytest.mark.parametrize('text', ['nan', '-0.1', '1.5'])
def test_a_share_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match='is out of range, wanted 0 to 1'):
        cli.share(text)


@pytest.mark.parametrize('text', ['model', '=3', ''])
def test_options_that_are_none(text, capsys):
    parser = argparse.ArgumentParser()
    cli.add_config_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', text])
    assert f'--cfg-options wants KEY=VALUE: got {text}' in capsys.readouterr().err
