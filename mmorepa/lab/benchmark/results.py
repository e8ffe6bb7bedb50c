"""The numbers of a benchmark, and the JSON file that holds them.

The file is one object::

    format          2
    command         the command line, program first
    started         'YYYY-MM-DD HH:MM:SS'; likewise finished, null as long as it is not
    interrupted     whether it was ended before it was through
    machine         what it ran on; likewise software
    threads         of the CPU
    repeats         samples of each quantity; likewise warm_up, repeats before the first
    load            load averages of the machine over a minute, at the start and after each case
    preset          its name, or null
    cases           a list of
        kind            'network' or 'kernel'
        network, batch, size, width, frozen_stages, measures, accumulate, processes  of a network
        in_channels, out_channels, kernel_size                     of a kernel
        purpose         what the preset wants it for
        setup           device, amp, channels_last, compile, optimizer, steps
        subjects        a list of
            name, rung
            trainable       number of parameters that are trained
            failures        why something was not measured, one line, by what
            seconds         lists of one number a repeat, by quantity: see below
            bytes           by what they hold: see mmorepa.lab.benchmark.memory.measure
            sent            bytes that a process sends in a step, by collective
            operations      of a step but its optimizer: see mmorepa.lab.benchmark.measuring.totals
            computed        seconds that a step would take, by GPU: no measurement
            summary         of each quantity: median, lower and upper quartile, lowest, highest
            ratio           of the step to the first subject's, paired by repeat: likewise

Quantities of a network are ``step``, ``forward``, ``backward``, ``optimizer``, ``generate`` and
``pull_back``, see :class:`mmorepa.lab.benchmark.steps.TrainStep`; ``eval`` and ``deploy``, an
evaluation step in training and in deploy form. Those of a kernel are ``step``, ``generate`` and
``pull_back``. ``summary`` and ``ratio`` follow from ``seconds`` and are not read back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...errors import UserError
from ...writing import write_json
from .plan import label
from .spread import Spread, ratios, spread, sums

FORMAT = 2


@dataclass
class Measured:
    """What was measured of one subject in one case; fields as in the file, see above."""

    name: str
    rung: str = ''
    trainable: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)

    def record(self, quantity: str, seconds: float) -> None:
        """Add a sample."""
        self.seconds.setdefault(quantity, []).append(seconds)

    def samples(self, quantity: str) -> list[float]:
        """Those of a quantity, or of one that follows from several.

        Args:
            quantity (str): One of the file's; ``'generation'``, generating and pulling back.
        """
        if quantity == 'generation':
            return sums(self.samples('generate'), self.samples('pull_back'))
        return self.seconds.get(quantity, [])

    def spread(self, quantity: str) -> Spread | None:
        """Of :meth:`samples`; None where there are none."""
        return spread(self.samples(quantity))

    def ratio(self, other: Measured, quantity: str = 'step', of: str | None = None):
        """A quantity over the other subject's, paired by repeat.

        Args:
            other (Measured): The subject below the line.
            quantity (str): See :meth:`samples`.
            of (str, optional): The other's quantity, if it is another one.

        Returns:
            Spread | None: None where one was not measured.
        """
        return spread(ratios(self.samples(quantity), other.samples(of or quantity)))

    @property
    def saved_bytes(self) -> int | None:
        """What a step keeps beside parameters, buffers, gradients and optimizer state.

        Activations and kernels, as autograd saves them.
        """
        if 'activations' not in self.bytes:
            return None
        return self.bytes['activations'] + self.bytes['kernels']

    @property
    def peak_rest_bytes(self) -> int | None:
        """The peak of a GPU less parameters, buffers, gradients and optimizer state."""
        if 'peak' not in self.bytes:
            return None
        kept = ('parameters', 'buffers', 'gradients', 'optimizer')
        return self.bytes['peak'] - sum(self.bytes[name] for name in kept)

    @property
    def training_bytes(self) -> int | None:
        """All that a step keeps: the peak of a GPU, else the sum of what was counted."""
        if not self.bytes:
            return None
        return self.bytes.get('peak') or sum(self.bytes.values())


@dataclass
class CaseResult:
    """A condition and its subjects.

    Attributes:
        case (dict): Of ``describe()`` of :mod:`mmorepa.lab.benchmark.plan`.
        subjects (list[Measured]): The others are compared with the first.
    """

    case: dict
    subjects: list[Measured]

    def __getitem__(self, name: str) -> Measured:
        """The subject of that name; one without numbers if there is none."""
        return next((s for s in self.subjects if s.name == name), Measured(name))

    @property
    def first(self) -> Measured:
        """What the others are compared with."""
        return self.subjects[0]

    @property
    def label(self) -> str:
        """The condition in words."""
        return label(self.case)


@dataclass
class Results:
    """All numbers of a benchmark; fields as in the file, see above."""

    command: str
    machine: str
    software: str
    started: str
    threads: int
    repeats: int
    warm_up: int
    finished: str | None = None
    interrupted: bool = False
    preset: str | None = None
    load: list[float] = field(default_factory=list)
    cases: list[CaseResult] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[CaseResult]:
        """The cases of one kind."""
        return [result for result in self.cases if result.case['kind'] == kind]

    def write(self, path: str | os.PathLike) -> None:
        """Write the file, whole or not at all."""
        content = {'format': FORMAT, **asdict(self)}
        content['cases'] = [_case_as_dict(result) for result in self.cases]
        write_json(content, path)


def _case_as_dict(result: CaseResult) -> dict:
    subjects = []
    for subject in result.subjects:
        summary = {name: asdict(subject.spread(name)) for name in subject.seconds}
        ratio = subject.ratio(result.first)
        subjects.append(
            dict(asdict(subject), summary=summary, ratio=None if ratio is None else asdict(ratio))
        )
    return dict(result.case, subjects=subjects)


def read(path: str | os.PathLike) -> Results:
    """Read the file back.

    Raises:
        UserError: If there is none, or it is another file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no results at {path}: give the benchmark.json that a benchmark wrote')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        found = content.pop('format')
        if found != FORMAT:
            raise UserError(f'{path} has format {found}, wanted {FORMAT}: run the benchmark again')
        cases = [_case_of_dict(case) for case in content.pop('cases')]
        return Results(**content, cases=cases)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f'{path} is no result of tools/benchmark.py: give the benchmark.json that it wrote'
        ) from None


def _case_of_dict(case: dict) -> CaseResult:
    derived: Sequence[str] = ('summary', 'ratio')
    subjects = [
        Measured(**{key: value for key, value in subject.items() if key not in derived})
        for subject in case.pop('subjects')
    ]
    return CaseResult(case, subjects)
