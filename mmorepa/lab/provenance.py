"""What a number was measured with: the machine, the libraries, the commit, the time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from ..version import __version__

LIBRARIES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')


def machine() -> str:
    """What this process computes with: ``'AMD EPYC, 2 cores, 1 thread, no GPU'``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    threads = torch.get_num_threads()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{_processor()}, {_count(cores, "core")}, {_count(threads, "thread")}, {gpu}'


def software() -> str:
    """Versions of what this process has imported, and the checkout's commit if there is one."""
    versions = dict(Python=platform.python_version(), torch=torch.__version__)
    if torch.cuda.is_available():
        versions.update(CUDA=torch.version.cuda, cuDNN=torch.backends.cudnn.version())
    elif torch.backends.mkldnn.is_available():
        versions['oneDNN'] = _onednn()
    for name in LIBRARIES:
        if hasattr(sys.modules.get(name), '__version__'):
            versions[name] = sys.modules[name].__version__
    versions['mmorepa'] = __version__
    text = ', '.join(f'{name} {version}' for name, version in versions.items())
    commit = git_commit()
    return f'{text} at commit {commit}' if commit else text


def git_commit() -> str:
    """The commit of the checkout that this package is in; empty where it is in none."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ['git', '--no-optional-locks', '-C', str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Installed, the package may lie in a checkout of something else.
        if Path(git('rev-parse', '--show-toplevel')).resolve() != root:
            return ''
        changed = ' with changes' if git('status', '--porcelain') else ''
        return git('rev-parse', '--short', 'HEAD') + changed
    except (OSError, subprocess.CalledProcessError):
        return ''


def load() -> float:
    """The load average of the machine over the last minute."""
    return round(os.getloadavg()[0], 2)


def now() -> str:
    """The time of day: ``'2026-11-24 09:03:19'``."""
    return time.strftime('%Y-%m-%d %H:%M:%S')


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _onednn() -> str:
    for line in torch.__config__.show().splitlines():
        if 'MKL-DNN' in line or 'oneDNN' in line:
            return line.strip(' -').split(' v')[-1].split(' ')[0]
    return 'of unknown version'


def _count(number: int, thing: str) -> str:
    return f'{number} {thing}' + 's' * (number != 1)
