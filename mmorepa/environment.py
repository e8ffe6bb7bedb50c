"""What the parts of mmorepa need, what is installed, and the command that mends a difference.

A part counts on the names that are imported, not on the names that were installed: the onedl-*
forks offer the same modules under version numbers of their own. Standard library only, so that
it also runs where nothing else does.
"""

import ctypes
import importlib.util
import re
import shlex
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, Optional


class Dist(NamedTuple):
    """A distribution that offers a module, and the versions of it that serve.

    ``tried`` is the version of the default stack, named by mending commands; ``mmcv`` is the range
    that a library checks mmcv against when it is imported, each has its own.
    """

    name: str
    at_least: str = ''
    below: str = ''
    tried: str = ''
    mmcv: Optional['Dist'] = None


class Row(NamedTuple):
    """One need of a part: ``mend`` is the command that meets it, empty where it is met."""

    module: str
    found: str
    wanted: str
    mend: str = ''


# mmcv-lite is all of mmcv but the compiled operators, for which mmorepa.ops stands in.
MMCV = Dist('mmcv-lite', '2.0.0', '2.2.0', '2.1.0')
MMCV_FORK = Dist('onedl-mmcv', '2.0.0', '3.0.0')

# The first of each line is the one that a mending command and setup.py's extras name.
DISTS = {
    'torch': (Dist('torch', '2.5.0', tried='2.14.1'),),
    'mmengine': (
        Dist('mmengine', '0.8.3', '1.0.0', '0.10.7'),
        Dist('mmengine-lite', '0.8.3', '1.0.0'),
        Dist('onedl-mmengine', '0.10.8', '1.0.0'),
    ),
    'mmcv': (MMCV, Dist('mmcv'), MMCV_FORK, Dist('mmcv-full')),
    'mmpretrain': (
        Dist('mmpretrain', '1.2.0', '2.0.0', '1.2.0', MMCV._replace(below='2.4.0')),
        Dist('onedl-mmpretrain', '1.3.0', '2.0.0', mmcv=MMCV_FORK._replace(below='2.4.0')),
    ),
    'mmdet': (
        Dist('mmdet', '3.2.0', '4.0.0', '3.3.0', MMCV),
        Dist('onedl-mmdetection', '3.5.0', '4.0.0', mmcv=MMCV_FORK),
    ),
    'mmseg': (
        Dist('mmsegmentation', '1.2.0', '2.0.0', '1.2.2', MMCV),
        Dist('onedl-mmsegmentation', '1.4.0', '2.0.0', mmcv=MMCV_FORK),
    ),
    'ftfy': (Dist('ftfy'),),
    'regex': (Dist('regex'),),
    'mim': (Dist('openmim', '0.3.9', '0.4.0', '0.3.9'), Dist('onedl-mim')),
    'pkg_resources': (Dist('setuptools', '', '82'),),
    # What openmim itself imports: it is best installed with --no-deps, so nothing brings these.
    'click': (Dist('click'),),
    'colorama': (Dist('colorama'),),
    'modelindex': (Dist('model-index'),),
    'pandas': (Dist('pandas'),),
    'requests': (Dist('requests'),),
    'rich': (Dist('rich'),),
    'tabulate': (Dist('tabulate'),),
    'onnx': (Dist('onnx', '1.16', tried='1.23.2'),),
    'onnxruntime': (
        Dist('onnxruntime', '1.18', tried='1.32.0'),
        Dist('onnxruntime-gpu', '1.18'),
    ),
}

OPS = 'mmcv._ext'
NO_OPS = 'no operators'

PARTS = {
    'core': ('torch',),
    'pretrain': ('torch', 'mmengine', 'mmcv', 'mmpretrain'),
    'det': ('torch', 'mmengine', 'mmcv', OPS, 'mmdet'),
    'seg': ('torch', 'mmengine', 'mmcv', OPS, 'mmseg', 'ftfy', 'regex'),
    # Those with a library::config among their bases, as ours have.
    'configs': ('mmengine', 'pkg_resources'),
    'mim': (
        'mim',
        'pkg_resources',
        'click',
        'colorama',
        'modelindex',
        'pandas',
        'requests',
        'rich',
        'tabulate',
    ),
    'export': ('onnx', 'onnxruntime'),
}

INSTALL = {
    # Its dependencies would pull setuptools below what torch can use.
    'openmim': 'pip install --no-deps',
    # It has no wheel, and its operators do not compile against the newest torch.
    'onedl-mmcv': 'MMCV_WITH_OPS=0 pip install',
}
INSTALL_OPS = 'python -m mmorepa.ops install'

LIBRARIES = {'pretrain': 'mmpretrain', 'det': 'mmdet', 'seg': 'mmseg'}


def require(part: str) -> None:
    """Make sure that a part can work; imports none of the libraries that it looks at.

    Args:
        part: a key of ``PARTS``.

    Raises:
        ImportError: one line with what was found, what is wanted and the command that mends it.
    """
    for row in inspect(part):
        if row.mend:
            raise ImportError(
                f'mmorepa.{part} needs {row.module} {row.wanted}: found {row.found}; '
                f'mend it with: {row.mend}'
            )


def inspect(part: str) -> list[Row]:
    """Compare what a part needs with what is there, one row a need.

    Args:
        part: a key of ``PARTS``.
    """
    library = LIBRARIES.get(part)
    modules = [m for m in PARTS[part] if m != 'pkg_resources' or _imports_pkg_resources(part)]
    return [_ops_row(library) if m == OPS else _row(m, library) for m in modules]


def distribution(module: str) -> str:
    """The name of what offers a module, by which ``mim`` knows it: that of the fork where it is."""
    return _installed(module)[0].name


def requirements(part: str) -> list[str]:
    """The needs of a part as pip requirements, torch and mmcv left out.

    mmcv-lite, installed over a compiled mmcv, would take its place.

    Args:
        part: a key of ``PARTS``.
    """
    modules = [m for m in PARTS[part] if m not in ('torch', 'mmcv', OPS)]
    return [_spec(_want(m, DISTS[m][0], LIBRARIES.get(part))) for m in modules]


def ops_problem() -> str:
    """Why mmcv's operators cannot be used, in one line; empty where they can."""
    folder = _folder('mmcv')
    if folder is None:
        return 'no mmcv'
    file = compiled_ops(folder)
    if file is None:
        # Those of mmorepa.ops, for this process or installed.
        there = OPS in sys.modules or (folder / '_ext.py').is_file()
        return '' if there else NO_OPS
    try:
        import torch  # noqa: F401  (its libraries must be loaded first)

        ctypes.CDLL(str(file))
    except (ImportError, OSError) as error:
        symbol = re.search(r'undefined symbol: (\S+)', str(error))
        if symbol:
            return f'operators built for another torch (undefined symbol {symbol[1]})'
        return f'operators that do not load ({" ".join(str(error).split())})'
    return ''


def compiled_ops(folder):
    """The file of mmcv's compiled operators in its folder; None where there is none.

    Args:
        folder: mmcv's.
    """
    files = [folder / f'_ext{suffix}' for suffix in EXTENSION_SUFFIXES]
    return next((f for f in files if f.is_file()), None)


def _imports_pkg_resources(part):
    """Whether what a part runs on imports it: openmim and MMEngine do, until 0.11."""
    dist, number = _installed({'mim': 'mim', 'configs': 'mmengine'}[part])
    return not dist.name.startswith('onedl') and _order(number or '0') < _order('0.11.0a')


def _row(module, library):
    dist, number = _installed(module)
    want = _want(module, dist, library)
    wanted = _range(want) or 'any version'
    if _folder(module) is None:
        return Row(module, 'nothing', wanted, _install(want))
    if number is None:
        return Row(module, 'a copy of unknown version', wanted)
    return Row(
        module,
        f'{dist.name} {number}',
        wanted,
        '' if _within(number, want) else _replace(dist, want),
    )


def _ops_row(library):
    problem = ops_problem()
    if not problem:
        found = "mmcv's own" if compiled_ops(_folder('mmcv')) else 'mmorepa.ops'
        return Row(OPS, found, 'that loads')
    dist, number = _installed('mmcv')
    mend = INSTALL_OPS
    if problem != NO_OPS:
        remove = f'pip uninstall -y {dist.name} && ' if number else ''
        mend = f'{remove}{_install(_want("mmcv", dist, library))} && {INSTALL_OPS}'
    found = f'{dist.name} {number} with {problem}' if number else problem
    return Row(OPS, found, 'that loads', mend)


def _installed(module):
    """The distribution that offers a module and its version; the first choice if none does."""
    for dist in DISTS[module]:
        try:
            return dist, version(dist.name)
        except PackageNotFoundError:
            continue
    return DISTS[module][0], None


def _want(module, dist, library):
    return _installed(library)[0].mmcv if module == 'mmcv' else dist


def _folder(module) -> Path | None:
    """Where a top-level module lies, without importing it; None where there is none."""
    spec = importlib.util.find_spec(module)
    # A folder without __init__.py, say a clone in the working folder, is no package.
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _install(want):
    spec = f'{want.name}=={want.tried}' if want.tried else _spec(want)
    return f'{INSTALL.get(want.name, "pip install")} {shlex.quote(spec)}'


def _replace(dist, want):
    # Two distributions that offer one module overwrite each other's files.
    other = f'pip uninstall -y {dist.name} && ' if dist.name != want.name else ''
    return other + _install(want)


def _spec(want):
    return want.name + _range(want)


def _range(want):
    at_least = [f'>={want.at_least}'] if want.at_least else []
    below = [f'<{want.below}'] if want.below else []
    return ','.join(at_least + below)


def _within(number, want):
    here = _order(number)
    above = not want.at_least or _order(want.at_least) <= here
    return above and (not want.below or here < _order(want.below))


def _order(number):
    """A key that sorts versions; a pre-release comes before its release."""
    release, rest = re.match(r'v?([\d.]*)(.*)', number).groups()
    numbers = [int(n) for n in release.split('.') if n]
    final = not re.match(r'[-_]?(a|b|c|rc|alpha|beta|pre|dev)', rest)
    return (numbers + [0] * 4)[:4], final
