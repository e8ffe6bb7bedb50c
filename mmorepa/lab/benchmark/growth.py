"""How cost grows with the batch, the resolution and the width."""

from __future__ import annotations

from dataclasses import dataclass

from ..scaffold import digits
from .results import CaseResult, Measured, Results

#: What can be varied: the field of a case, and how it is called.
AXES = {'batch': 'batch', 'size': 'height and width', 'width': 'width factor'}


@dataclass(frozen=True)
class Line:
    """The cases of one network that differ in one field alone.

    Attributes:
        axis (str): The field, of :data:`AXES`.
        network (str): Its name.
        cases (list[CaseResult]): Two or more, ascending in it.
    """

    axis: str
    network: str
    cases: list[CaseResult]

    @property
    def values(self) -> list[float]:
        """Those of the field."""
        return [result.case[self.axis] for result in self.cases]

    @property
    def names(self) -> list[str]:
        """The subjects with a training step in every case."""
        common = [
            {subject.name for subject in result.subjects if subject.samples('step')}
            for result in self.cases
        ]
        return [s.name for s in self.cases[0].subjects if all(s.name in names for names in common)]

    def of(self, name: str) -> list[Measured]:
        """A subject in every case."""
        return [result[name] for result in self.cases]


def lines(results: Results) -> list[Line]:
    """Every network along every field that was varied, the other fields at their first value."""
    found = []
    groups: dict[tuple, list[CaseResult]] = {}
    for result in results.of_kind('network'):
        case = result.case
        if case['purpose'] or 'train' not in case['measures']:
            continue
        alike = ('network', 'frozen_stages', 'accumulate', 'processes')
        same = (*[case[key] for key in alike], str(case['setup']))
        groups.setdefault(same, []).append(result)
    for axis in AXES:
        for (network, *_), group in groups.items():
            others = [other for other in AXES if other != axis]
            first = group[0].case
            along = [
                result
                for result in group
                if all(result.case[other] == first[other] for other in others)
            ]
            if len(along) > 1:
                along.sort(key=lambda result: result.case[axis])
                found.append(Line(axis, network or 'configs', along))
    return [line for line in found if line.names]


def sentences(results: Results) -> list[str]:
    """One sentence for each of :func:`lines`."""
    return [_sentence(line) for line in lines(results)]


def _sentence(line: Line) -> str:
    low, high = line.values[0], line.values[-1]
    grown = f'{high / low:.3g} times'
    if line.axis == 'size':
        grown = f'{(high / low) ** 2:.3g} times the pixels'
    longer = []
    for name in line.names:
        first, *_, last = (measured.spread('step').median for measured in line.of(name))
        longer.append(f'{last / first:.3g} ({name})')
    parts = [f'a step takes {", ".join(longer)} times as long']
    base = line.names[0]
    for name in line.names[1:]:
        first, last = (
            result[name].ratio(result[base]).median for result in (line.cases[0], line.cases[-1])
        )
        parts.append(f'{name} over {base} goes from {first:.2f} to {last:.2f}')
    for name in line.names:
        spreads = [measured.spread('generation') for measured in line.of(name)]
        if all(spreads):
            first, last = (digits(1e3 * found.median) for found in (spreads[0], spreads[-1]))
            parts.append(f'generating the kernels of {name} takes {first} and {last} ms')
    what = f'{AXES[line.axis]} from {low:g} to {high:g}'
    return f'{line.network}, {what}, {grown}: {"; ".join(parts)}.'
