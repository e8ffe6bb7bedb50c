"""Make the environment that `make demo` and `make test` run in.

Example: python3.11 tools/setup_env.py

Doing it again takes a moment and changes nothing. mmcv has no wheel to fetch: a compiled one is
looked for in the folders of MMOREPA_WHEELS, then in the cache, and else it is compiled there.

Standard library only, and written so that an old Python 3 can read it: it gets a sentence, then,
and no traceback.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
#: Where the requirement files of a stack lie that differ from those of the pinned one.
STACKS = {'pinned': REQUIREMENTS, 'newest': REQUIREMENTS / 'newest'}
PYTHON = (3, 11)  # that of requirements/constraints.txt
STAMP = 'mmorepa-stamp.json'
LOG = 'setup.log'
SECONDS_BETWEEN_LINES = 60  # of progress, where no terminal refreshes one


class SetupError(Exception):
    """A reason to stop, in one line."""


def environment_key(requirements):
    """A short hash of the requirement files in a folder: of names and contents, never of dates."""
    digest = hashlib.sha256()
    for file in sorted(Path(requirements).glob('*.txt')):
        digest.update(file.name.encode() + b'\0' + file.read_bytes() + b'\0')
    return digest.hexdigest()[:12]


def project_key(root):
    """A short hash of what the editable install depends on: the place and the packaging files."""
    digest = hashlib.sha256(str(root).encode())
    for name in ('setup.py', 'pyproject.toml', 'mmorepa/version.py', 'mmorepa/environment.py'):
        digest.update((Path(root) / name).read_bytes())
    return digest.hexdigest()[:12]


def cache_folder(environ):
    """The folder for what outlives a checkout."""
    return Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmorepa'


def stack_key(requirements, stack):
    """The key of a stack's requirement files."""
    key = environment_key(requirements)
    return key if stack == 'pinned' else key + environment_key(Path(requirements) / stack)


def environment_folder(root, environ, stack='pinned'):
    """Where the environment lies: in the checkout; where CI is set, under its key in the cache."""
    if environ.get('CI'):
        key = stack_key(Path(root) / 'requirements', stack)
        return cache_folder(environ) / f'env-{key}'
    return Path(root) / ('.venv' if stack == 'pinned' else f'.venv-{stack}')


def pinned(requirements, name):
    """The version that a requirement file pins a package to.

    Raises:
        SetupError: where none does.
    """
    for file in sorted(Path(requirements).glob('*.txt')):
        found = re.search(rf'^{re.escape(name)}==(\S+)', file.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    raise SetupError(f'no file in {requirements} pins {name}: add a line {name}==VERSION')


def wheel_cache(environ, torch):
    """The folder that keeps the mmcv compiled here for one torch version and this Python."""
    return cache_folder(environ) / 'wheels' / f'torch{torch}-{python_tag()}'


def wheel_folders(root, environ, torch):
    """The folders that may hold a compiled mmcv, in the order in which they are tried."""
    if 'MMOREPA_WHEELS' in environ:
        folders = [Path(f) for f in environ['MMOREPA_WHEELS'].split(os.pathsep) if f]
    else:
        short = '.'.join(torch.split('.')[:2])
        folders = [Path(root).parent / 'shared' / 'wheels' / f'torch{short}']
    return folders + [wheel_cache(environ, torch)]


def find_wheels(folders, mmcv):
    """The wheels of one mmcv version for this Python and processor, in the order of the folders."""
    pattern = f'mmcv-{mmcv}-{python_tag()}-*_{platform.machine()}.whl'
    return [wheel for folder in folders for wheel in sorted(Path(folder).glob(pattern))]


def python_tag():
    """The tag of this Python in a wheel's name, such as cp311."""
    return 'cp{}{}'.format(*sys.version_info[:2])


def ninja_step(output):
    """The last `[done/all]` that ninja wrote in a piece of output; empty where there is none."""
    steps = re.findall(r'^\s*(\[\d+/\d+\])', output, re.MULTILINE)
    return steps[-1] if steps else ''


class Environment:
    """A virtual environment with one of the stacks, and the steps that make it."""

    def __init__(self, folder, stack='pinned'):
        self.folder = folder
        self.stack = stack
        self.python = folder / 'bin' / 'python'
        self.log = folder / LOG

    def read_stamp(self):
        """What was completed in the folder, by key; nothing where the folder is not usable."""
        if not self.python.exists():
            return {}
        try:
            return json.loads((self.folder / STAMP).read_text())
        except (OSError, ValueError):
            return {}

    def write_stamp(self, stamp):
        """Say what is complete; the file is there whole or not at all."""
        temporary = self.folder / (STAMP + '.new')
        temporary.write_text(json.dumps(stamp))
        os.replace(str(temporary), str(self.folder / STAMP))

    def make(self):
        """Make the folder anew, with all but mmorepa in it."""
        self.clear()
        self.run('making the virtual environment', [sys.executable, '-m', 'venv', self.folder])
        self.install('build tools', '-r', 'build.txt')
        self.install('torch (2.5 GB to fetch)', '-r', 'torch.txt')
        self.install_mmcv()
        self.install('OpenMMLab', '-r', 'openmmlab.txt')
        self.install('mim', '--no-deps', '-r', 'mim.txt')
        self.install("mim's dependencies", '-r', 'mim-deps.txt')
        self.install('test tools', '-r', 'tests.txt')
        self.install('export and documentation', '-r', 'export.txt', '-r', 'docs.txt')

    def clear(self):
        """Empty the folder.

        Raises:
            SetupError: where it holds anything but an environment.
        """
        ours = any((self.folder / name).exists() for name in ('pyvenv.cfg', LOG))
        if self.folder.exists() and any(self.folder.iterdir()) and not ours:
            raise SetupError(
                f'{self.folder} is not a virtual environment: empty it or name another'
            )
        if self.folder.exists():
            shutil.rmtree(str(self.folder))
        self.folder.mkdir(parents=True)

    def file(self, name):
        """A requirement file: that of the stack, where it has its own."""
        own = STACKS[self.stack] / name
        return own if own.exists() else REQUIREMENTS / name

    def install(self, title, *arguments):
        """Install with pip; names of requirement files are looked up in requirements/."""
        arguments = [self.file(a) if str(a).endswith('.txt') else a for a in arguments]
        self.run('installing ' + title, self.pip('install', *arguments))

    def pip(self, command, *arguments):
        """A pip command line; settings come from pip's own files and variables, as always."""
        pip = [self.python, '-m', 'pip', command, '--progress-bar', 'off']
        return pip + ['-c', self.file('constraints.txt')] + list(arguments)

    def install_mmcv(self):
        """Install mmcv with its operators: a compiled one where there is one that loads."""
        mmcv = pinned(REQUIREMENTS, 'mmcv')
        torch = pinned(self.file('torch.txt').parent, 'torch')
        folders = wheel_folders(ROOT, os.environ, torch)
        for wheel in find_wheels(folders, mmcv):
            self.install(f'mmcv from {wheel}', '--no-deps', '--force-reinstall', wheel)
            problem = self.ops_problem()
            if not problem:
                return
            say(f'  passed over: {problem}')
        places = ', '.join(str(folder) for folder in folders)
        say(f'no compiled mmcv {mmcv} for torch {torch} in: {places}')
        if self.stack != 'pinned':
            raise SetupError(
                f'mmcv {mmcv} does not compile against torch {torch}: name a folder that has its '
                'wheel, built against a torch that is nearly as new, in MMOREPA_WHEELS'
            )
        wheel = self.compile_mmcv(mmcv, wheel_cache(os.environ, torch))
        self.install('mmcv', '--no-deps', '--force-reinstall', wheel)
        problem = self.ops_problem()
        if problem:
            raise SetupError(f'the mmcv compiled here has {problem}: see {self.log}')

    def compile_mmcv(self, mmcv, folder):
        """Compile mmcv with its CPU operators and keep the wheel in a folder; give its path."""
        check_compiler()
        say(f'compiling it once, about 14 minutes on two cores; kept in {folder}')
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.building-', dir=str(folder)) as building:
            variables = {
                'FORCE_CUDA': '0',
                'CUDA_VISIBLE_DEVICES': '',  # a visible GPU would have it ask for nvcc
                'MMCV_WITH_OPS': '1',
                # torch looks for the environment's ninja on the path.
                'PATH': str(self.python.parent) + os.pathsep + os.environ['PATH'],
                'TMPDIR': building,  # so that nothing stays where it is stopped
            }
            # pip's own cache of wheels does not know which torch one was built for.
            flags = ['-v', '--no-cache-dir', '--no-build-isolation', '--no-deps', '--no-binary']
            command = self.pip('wheel', *flags, 'mmcv', '-w', building, f'mmcv=={mmcv}')
            self.run(f'compiling mmcv {mmcv}', command, dict(os.environ, **variables))
            (built,) = Path(building).glob('mmcv-*.whl')
            wheel = folder / built.name
            os.replace(str(built), str(wheel))
        return wheel

    def ops_problem(self):
        """Why the operators of the mmcv in the environment cannot be used; empty where they can."""
        code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['ops_problem']())"
        command = [str(self.python), '-c', code, str(ROOT / 'mmorepa' / 'environment.py')]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        return result.stdout.strip() if result.returncode == 0 else 'operators that do not load'

    def install_project(self):
        """Point the environment to this checkout."""
        self.install('mmorepa from this checkout', '--no-deps', '--no-build-isolation', '-e', ROOT)

    def check(self):
        """Make sure that every part works."""
        parts = ['core', 'pretrain', 'det', 'seg', 'mim', 'export']
        self.run('checking', [self.python, ROOT / 'tools' / 'check_env.py'] + parts)

    def run(self, title, command, environ=None):
        """Run a command, its output going to the log; show how long it takes and how far it is.

        Raises:
            SetupError: where it fails, after the last lines of its output.
        """
        progress = Progress(title)
        with self.log.open('a') as log:
            start = log.tell()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,  # so that what it starts can be ended with it
            )
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                        break
                    progress.show(ninja_step(tail(self.log, start)))
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
        progress.end(process.returncode == 0)
        if process.returncode:
            for line in tail(self.log, start).splitlines()[-15:]:
                say('  | ' + line)
            raise SetupError(
                f'{title} failed (exit code {process.returncode}): all it said is in {self.log}'
            )


class Progress:
    """One line on what runs: refreshed on a terminal, else repeated now and then."""

    def __init__(self, title):
        self.title = title
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.write('...')

    def show(self, note):
        """Tell the time it has taken, and a note on how far it is."""
        now = time.monotonic()
        if self.terminal or now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            self.write(f'{self.elapsed()} {note}'.rstrip())

    def end(self, success):
        """Close the line."""
        self.write('{} ({})'.format('done' if success else 'FAILED', self.elapsed()))
        if self.terminal:
            say('')

    def elapsed(self):
        """The time since the start, as minutes:seconds."""
        return '{:d}:{:02d}'.format(*divmod(int(time.monotonic() - self.start), 60))

    def write(self, text):
        """Write the line, over the last one on a terminal."""
        line = f'{self.title}: {text}'
        if self.terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            sys.stdout.write('\r\x1b[K' + line)
            sys.stdout.flush()
        else:
            say(line)


def tail(file, start):
    """The last 64 kB of a file, from a start on: more than one command line of a compiler."""
    with file.open('rb') as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, end - 65536))
        return stream.read().decode(errors='replace')


def say(text):
    """Print at once: the reader may be a pipe."""
    print(text, flush=True)


def check_python():
    """Make sure that this Python can make the environment.

    Raises:
        SetupError: where it cannot.
    """
    if sys.version_info[:2] != PYTHON:
        raise SetupError(
            'this is Python {}, and the pinned stack is for {}.{}: '
            'install that and run `make PYTHON=/its/python`'.format(
                platform.python_version(), *PYTHON
            )
        )
    for module in ('venv', 'ensurepip'):
        if not importlib.util.find_spec(module):
            raise SetupError(
                '{} lacks the module {}: install it (Debian: apt-get install '
                'python{}.{}-venv)'.format(sys.executable, module, *PYTHON)
            )


def check_compiler():
    """Make sure that mmcv can be compiled.

    Raises:
        SetupError: where a piece is missing.
    """
    compiler = os.environ.get('CXX', 'c++')
    if not shutil.which(compiler.split()[0]):
        raise SetupError(
            f'no C++ compiler ({compiler}) to compile mmcv with: install one (Debian: apt-get '
            'install g++), or name a folder with a compiled mmcv in MMOREPA_WHEELS'
        )
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.exists():
        raise SetupError(
            "no {}, Python's header to compile mmcv with: install it (Debian: apt-get install "
            'python{}.{}-dev)'.format(header, *PYTHON)
        )


@contextlib.contextmanager
def alone(folder):
    """Wait until no other set-up works in a folder, and keep others waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f'waiting for another set-up in {folder}')
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def set_up(environment):
    """Bring an environment up to date with this checkout; do what its stamp lacks, and no more."""
    key = stack_key(REQUIREMENTS, environment.stack)
    wanted = {'environment': key, 'project': project_key(ROOT)}
    stamp = environment.read_stamp()
    if stamp == wanted:
        return
    if stamp.get('environment') != wanted['environment']:
        check_python()
        environment.make()
        environment.write_stamp({'environment': wanted['environment']})
    environment.install_project()
    environment.check()
    environment.write_stamp(wanted)


def main(argv=None):
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--env', type=Path, help='folder of the environment (.venv; see --where)')
    parser.add_argument(
        '--stack', choices=sorted(STACKS), default='pinned', help='see docs/second_stack.md'
    )
    parser.add_argument(
        '--where', action='store_true', help='print the folder of the environment, and do nothing'
    )
    args = parser.parse_args(argv)
    folder = (args.env or environment_folder(ROOT, os.environ, args.stack)).absolute()
    if args.where:
        say(folder)
        return 0
    # Ended by a signal, it still has to end what it started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with alone(folder.parent):
            set_up(Environment(folder, args.stack))
    except SetupError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nstopped: the environment is not complete, run it again', file=sys.stderr)
        return 130
    say(f'environment: {folder} is ready')
    return 0


if __name__ == '__main__':
    sys.exit(main())
