"""The commands of the documentation that no test can run in full, and why."""

import re
from typing import NamedTuple


class NotRun(NamedTuple):
    """What matches is not run as it stands; what can be checked of it is, see ``dry.py``.

    Attributes:
        pattern (str): A regular expression for the beginning of a command.
        reason (str): Why.
    """

    pattern: str
    reason: str


NOT_RUN = (
    NotRun(
        r'python tools/\S+ (\S+ )*configs/(imagenet|coco|cityscapes|fashion)/',
        'data sets, GPUs, a download',
    ),
    NotRun(r'python tools/(.* )?[A-Z]{2,}\b', "capitals stand for the reader's own files"),
    NotRun(
        r'python tools/import_official\.py (ResNet-18_OREPA|orepa\.pth|epoch_120\.pth)',
        "the reader's own files; docs/howto has these commands on the digits",
    ),
    NotRun(
        r'python tools/(analyze|convert|quantize)\.py \S+ (configs/\S+ )?(\S+ )?epoch_10\.pth',
        'a second each; tests/lab/analysis and tests/deploy run them',
    ),
    NotRun(
        r'python tools/\S+ configs/digits/\S+_qat_', 'tests/deploy/quantization trains the same'
    ),
    NotRun(r'python docs/', 'draws a picture of this documentation out of trainings of an hour'),
    NotRun(r'python tools/compare\.py', 'hours; tests/lab runs a small one'),
    NotRun(r'python tools/dataset_converters/fashion', 'network; tests/datasets has a server'),
    NotRun(r'python tools/benchmark\.py', 'minutes to hours; tests/lab/benchmark runs small ones'),
    NotRun(r'mim ', 'data sets, GPUs, and a process of its own; tests/configs runs mim'),
    NotRun(r'tools/dist_train\.sh', 'several GPUs; tests/e2e runs it with two processes'),
    NotRun(r'make ', 'minutes'),
    NotRun(r'python -m mmorepa\.ops', 'writes into the environment; tests/ops has one made up'),
    NotRun(r'pip install', 'network'),
    NotRun(r'source ', 'moves the shell of the reader'),
)


def reason(text: str) -> str | None:
    """Why a command is not run, or None where it is."""
    return next((row.reason for row in NOT_RUN if re.match(row.pattern, text)), None)
