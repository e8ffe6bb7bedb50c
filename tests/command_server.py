"""Runs Python commands one after the other, each in a process of its own.

The processes are forked from one that has imported the libraries, which would take most of the time
of most commands. Started as a program by :class:`Server`; asked on standard input, a line of JSON a
command.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

#: Imported once. Nothing of this project, which a command imports as it does for a user.
LIBRARIES = (
    'matplotlib.pyplot',
    'mmdet.datasets',
    'mmdet.models',
    'mmpretrain.apis',
    'mmpretrain.datasets',
    'mmpretrain.models',
    'mmseg.models',
    'rich.table',
    'sklearn.datasets',
)

#: After which a command is ended; none should need a tenth of them.
SECONDS = 300


class Server:
    """The program below, from the first command on.

    Args:
        folder (Path): Where what commands print is kept.
    """

    def __init__(self, folder: Path):
        self.log = folder / 'output'
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, *words: object, **variables: str) -> tuple[int, str]:
        """Run ``python WORDS`` in a folder, with these variables in its environment.

        Returns:
            tuple[int, str]: Its exit code and what it printed.
        """
        words = [str(word) for word in words]
        request = dict(words=words, folder=str(folder), variables=variables, log=str(self.log))
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, self.log.read_text(encoding='utf-8', errors='replace')

    def close(self) -> None:
        """End the program."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve() -> dict:
    """Answer each request with an exit code; return, in a new process, what it is to run."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever prints, a library too, shall not pass for an answer
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for library in LIBRARIES:
            importlib.import_module(library)
        from quick_configs import quicken, read_metafiles  # imports MMEngine
    quicken()
    read_metafiles('mmdet', 'mmpretrain', 'mmseg')
    gc.freeze()  # what is there stays shared with the processes to come
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    end(0)


def run(words: list[str], folder: str, variables: dict[str, str], log: str) -> None:
    """Become ``python WORDS``, for no longer than :data:`SECONDS`."""
    signal.alarm(SECONDS)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv = words
    sys.path[:1] = [os.path.dirname(os.path.realpath(words[0])), *path_of(variables)]
    try:
        runpy.run_path(words[0], run_name='__main__')
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        end(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except BaseException:
        traceback.print_exc()
        end(1)
    end(0)


def path_of(variables: dict[str, str]) -> list[str]:
    """The folders of PYTHONPATH, if a command sets it."""
    folders = variables.get('PYTHONPATH')
    return folders.split(os.pathsep) if folders else []


def end(code: int) -> None:
    """End this process at once: taking so many modules apart would take a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    run(**serve())
