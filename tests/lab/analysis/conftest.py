"""What the tests of the analysis share."""

import runpy
import sys

import pytest

import cli
from support import ROOT


@pytest.fixture
def analyze(monkeypatch, capsys, tmp_path):
    """Runs a command as the shell would, in an empty folder; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code: int = 0) -> str:
        monkeypatch.setattr(sys, 'argv', ['analyze.py', *map(str, arguments)])
        main = runpy.run_path(str(ROOT / 'tools' / 'analyze.py'))['main']
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        printed = capsys.readouterr()
        assert ended.value.code == code, printed
        return printed.err if code else printed.out

    return run
