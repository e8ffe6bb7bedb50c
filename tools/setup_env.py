"""Make the environment that `make demo` and `make test` run in.

Example: python3 tools/setup_env.py --stack default

Doing it again takes a moment and changes nothing. A stack is a file of locked versions in
requirements/, installed by uv, or by pip where uv cannot. The stack "compiled" has mmcv's own
operators: a wheel of them is looked for in the folders of MMOREPA_WHEELS, then in the cache, and
else compiled.

Standard library only, and written so that an old Python 3 can read it: it gets a sentence, then,
and no traceback.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The first and last Python that each stack was tried on.
STACKS = {
    'default': ((3, 10), (3, 13)),
    'compiled': ((3, 11), (3, 11)),
    'onedl': ((3, 10), (3, 13)),
}
STAMP = 'mmorepa-stamp.json'
LOG = 'setup.log'


class SetupError(Exception):
    """A reason to stop, in one line."""


def key(*parts):
    """A short hash of texts and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update((part.read_bytes() if isinstance(part, Path) else part.encode()) + b'\0')
    return digest.hexdigest()[:12]


def cache_folder(environ):
    """The folder for what outlives a checkout."""
    return Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmorepa'


def python_tag():
    """The tag of this Python in a wheel's name, such as cp311."""
    return 'cp{}{}'.format(*sys.version_info[:2])


def base_python():
    """This Python, and not that of an environment, which may be the one to be made anew."""
    base = Path(sys.base_prefix, 'bin', 'python{}.{}'.format(*sys.version_info[:2]))
    return base if sys.prefix != sys.base_prefix and base.exists() else Path(sys.executable)


def pinned(file, name):
    """The version that a requirement file pins a package to."""
    return re.search(rf'^{re.escape(name)}==([^\s;]+)', file.read_text(), re.MULTILINE).group(1)


def for_the_cpu(lock):
    """A lock with the CPU builds of torch and torchvision, and none of CUDA's libraries."""
    without = re.sub(r'^(nvidia|cuda|triton)\b.*\n', '', lock, flags=re.MULTILINE)
    return re.sub(r'^(torch(vision)?==[^\s;]+)', r'\1+cpu', without, flags=re.MULTILINE)


def wheel_folders(root, environ, torch):
    """The folders that may hold a compiled mmcv, in the order in which they are tried."""
    kept = cache_folder(environ) / 'wheels' / f'torch{torch}-{python_tag()}'
    if 'MMOREPA_WHEELS' in environ:
        return [Path(f) for f in environ['MMOREPA_WHEELS'].split(os.pathsep) if f] + [kept]
    short = '.'.join(torch.split('.')[:2])
    return [Path(root).parent / 'shared' / 'wheels' / f'torch{short}', kept]


class Environment:
    """A virtual environment with one of the stacks, and the steps that make it."""

    def __init__(self, stack, folder=None):
        self.stack = stack
        self.lock = ROOT / 'requirements' / f'{stack}.txt'
        own = ROOT / ('.venv' if stack == 'default' else f'.venv-{stack}')
        if os.environ.get('CI'):  # so that it outlives the checkout
            own = cache_folder(os.environ) / f'env-{stack}-{self.wanted()["environment"]}'
        self.folder = (folder or own).absolute()
        self.python = self.folder / 'bin' / 'python'
        self.log = self.folder / LOG

    def wanted(self):
        """Keys of what a complete environment is made from: its stack, and this checkout."""
        files = ('setup.py', 'pyproject.toml', 'mmorepa/version.py', 'mmorepa/environment.py')
        return {
            'environment': key(python_tag(), self.lock),
            'project': key(str(ROOT), *[ROOT / name for name in files]),
        }

    def set_up(self):
        """Do what the stamp lacks, and no more."""
        wanted, stamp = self.wanted(), self.read_stamp()
        if stamp == wanted:
            return
        if stamp.get('environment') != wanted['environment']:
            self.make()
            self.write_stamp({'environment': wanted['environment']})
        self.install_project()
        self.write_stamp(wanted)

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
        first, last = STACKS[self.stack]
        if not first <= sys.version_info[:2] <= last:
            raise SetupError(
                'this is Python {}, and the stack {} is for {}.{} to {}.{}: install one of those '
                'and run `make PYTHON=/its/python`'.format(
                    platform.python_version(), self.stack, *(first + last)
                )
            )
        python = base_python()
        self.clear()
        self.run('making the virtual environment', [python, '-m', 'venv', self.folder])
        lock = self.folder / 'requirements.txt'
        lock.write_text(self.lock.read_text())
        uv = f'uv=={pinned(lock, "uv")}'
        self.run(f'installing {uv}', self.pip('install', uv), may_fail=True)
        if platform.machine() == 'x86_64' and not shutil.which('nvidia-smi'):
            builds = [f'{n}=={pinned(lock, n)}+cpu' for n in ('torch', 'torchvision')]
            if self.install('looking for a CPU build of torch', *builds, may_fail=True):
                lock.write_text(for_the_cpu(lock.read_text()))
        self.install('installing torch, OpenMMLab and the tools', '-r', lock)
        if self.stack == 'compiled':
            self.install_compiled_mmcv()
        elif self.stack == 'onedl':
            self.install_onedl_mmcv()

    def clear(self):
        """Empty the folder.

        Raises:
            SetupError: where it holds anything but an environment.
        """
        if self.folder.exists():
            ours = any((self.folder / name).exists() for name in ('pyvenv.cfg', LOG))
            if any(self.folder.iterdir()) and not ours:
                raise SetupError(
                    f'{self.folder} is not a virtual environment: empty it or name another'
                )
            shutil.rmtree(str(self.folder))
        self.folder.mkdir(parents=True)

    def install(self, title, *what, may_fail=False):
        """Install these and nothing that they need, which a lock has, too; give success."""
        # pip compiles to bytecode unasked. Where nothing may write it later, each process would.
        uv = [self.folder / 'bin' / 'uv', 'pip', 'install', '--no-deps', '--compile-bytecode']
        uv += ['--python', self.python]
        if uv[0].exists() and self.run(title, uv + list(what), may_fail=True):
            return True
        return self.run(title + ' by pip', self.pip('install', *what), may_fail=may_fail)

    def pip(self, command, *arguments):
        """A pip command line."""
        return [self.python, '-m', 'pip', command, '--no-deps'] + list(arguments)

    def install_onedl_mmcv(self):
        """Install the fork's mmcv, which has no wheel, without the operators it would compile."""
        spec = f'onedl-mmcv=={pinned(self.lock.with_suffix(".in"), "onedl-mmcv")}'
        # pip's cache would hand this wheel to whoever wants one with operators.
        command = self.pip('install', '--no-cache-dir', spec)
        self.run(f'installing {spec}', command, dict(os.environ, MMCV_WITH_OPS='0'))
        # For a mmseg:: base its MMEngine looks for this name, which the fork does not have.
        (site,) = self.folder.glob('lib/python*/site-packages')
        (site / 'mmsegmentation').symlink_to('mmseg')

    def install_compiled_mmcv(self):
        """Install mmcv with its operators: a compiled one where there is one that loads."""
        mmcv = pinned(self.lock.with_suffix('.in'), 'mmcv')
        folders = wheel_folders(ROOT, os.environ, pinned(self.lock, 'torch'))
        name = f'mmcv-{mmcv}-{python_tag()}-*_{platform.machine()}.whl'
        for wheel in [wheel for folder in folders for wheel in sorted(folder.glob(name))]:
            if self.install_wheel(wheel):
                return
        if not shutil.which(os.environ.get('CXX', 'c++').split()[0]):
            raise SetupError(
                'no C++ compiler to compile mmcv with: install one (Debian: apt-get install g++), '
                'name a folder with a compiled mmcv in MMOREPA_WHEELS, or use the default stack'
            )
        print(f'no compiled mmcv {mmcv} in: {", ".join(map(str, folders))}')
        print(f'compiling it once, about 14 minutes on two cores; kept in {folders[-1]}')
        variables = {
            'FORCE_CUDA': '0',
            'CUDA_VISIBLE_DEVICES': '',  # a visible GPU would have it ask for nvcc
            'MMCV_WITH_OPS': '1',
            # torch looks for the environment's ninja on the path.
            'PATH': str(self.python.parent) + os.pathsep + os.environ['PATH'],
        }
        # pip's own cache of wheels does not know which torch one was built for.
        flags = ['--no-cache-dir', '--no-build-isolation', '--no-binary', 'mmcv']
        command = self.pip('wheel', *flags, '-w', folders[-1], f'mmcv=={mmcv}')
        self.run('compiling mmcv', command, environ=dict(os.environ, **variables))
        (wheel,) = folders[-1].glob(name)
        if not self.install_wheel(wheel):
            raise SetupError(f'the mmcv compiled here does not load: remove {wheel}')

    def install_wheel(self, wheel):
        """Install a compiled mmcv; give whether its operators load."""
        self.install(f'installing {wheel}', '--force-reinstall', wheel)
        code = 'import torch, mmcv._ext'
        return self.run('loading its operators', [self.python, '-c', code], may_fail=True)

    def install_project(self):
        """Point the environment to this checkout, and check that every part works."""
        title = 'installing mmorepa from this checkout'
        self.install(title, '--no-build-isolation', '-e', ROOT)
        if self.stack != 'compiled':
            command = [self.python, '-m', 'mmorepa.ops', 'install']
            self.run('putting its operators into mmcv', command)
        parts = ['core', 'pretrain', 'det', 'seg', 'configs', 'mim', 'export']
        self.run('checking', [self.python, ROOT / 'tools' / 'check_env.py'] + parts)

    def run(self, title, command, environ=None, may_fail=False):
        """Run a command, its output going to the log; tell how long it took and give success.

        Raises:
            SetupError: where it fails and must not, after the last lines of its output.
        """
        print(title, end=' ... ', flush=True)
        start = time.monotonic()
        with self.log.open('ab') as log:
            begin = log.tell()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=str(ROOT),
                start_new_session=True,  # so that what it starts can be ended with it
            )
            try:
                process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
        success = process.returncode == 0
        state = 'done' if success else 'no' if may_fail else 'FAILED'
        print('{} ({:d}:{:02d})'.format(state, *divmod(int(time.monotonic() - start), 60)))
        if not success and not may_fail:
            said = self.log.read_bytes()[begin:].decode(errors='replace')
            print(*['  | ' + line for line in said.splitlines()[-15:]], sep='\n')
            raise SetupError(
                f'{title} failed (exit code {process.returncode}): all it said is in {self.log}'
            )
        return success


@contextlib.contextmanager
def alone(folder):
    """Wait until no other set-up works in a folder, and keep others waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main(argv=None):
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--env', type=Path, help='folder of the environment (.venv; see --where)')
    parser.add_argument(
        '--stack', choices=sorted(STACKS), default='default', help='see docs/installation.md'
    )
    parser.add_argument(
        '--where', action='store_true', help='print the folder of the environment, and do nothing'
    )
    args = parser.parse_args(argv)
    environment = Environment(args.stack, args.env)
    if args.where:
        print(environment.folder)
        return 0
    # Ended by a signal, it still has to end what it started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with alone(environment.folder.parent):
            environment.set_up()
    except SetupError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nstopped: the environment is not complete, run it again', file=sys.stderr)
        return 130
    print(f'environment: {environment.folder} is ready')
    return 0


if __name__ == '__main__':
    sys.exit(main())
