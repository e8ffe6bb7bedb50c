"""What a benchmark found, as Markdown tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...writing import write_text
from ..scaffold import Column, digits, markdown_table
from .growth import sentences
from .plan import Setup
from .results import CaseResult, Measured, Results
from .roofline import (
    GPUS,
    LAUNCH,
    PUBLISHED_BATCH,
    PUBLISHED_ON,
    PUBLISHED_PROCESSES,
    Check,
    checks,
)
from .spread import Spread

MIB = 2**20
NOTHING = '–'


class Row(NamedTuple):
    """A subject in a case."""

    result: CaseResult
    subject: Measured

    @property
    def is_first(self) -> bool:
        """Whether the others are compared with it."""
        return self.subject is self.result.first


def to_markdown(results: Results, before: str = '') -> str:
    """The tables that there are numbers for, and below them how they came about.

    Args:
        results (Results): See there.
        before (str): What is to come first, see :func:`section`.
    """
    parts = [
        before,
        section('Training step', _training(results)),
        section('Bytes sent in a training step', _sent(results)),
        section('Operations of a training step', _operations(results)),
        section('What a training step would cost: computed, not measured', _computed(results)),
        section('Computed against published', _checks(results)),
        section('Memory of a training step', _memory(results)),
        section('Evaluation step', _evaluation(results)),
        section('Generating a kernel', _kernels(results)),
        section('Growth', [f'- {sentence}' for sentence in sentences(results)]),
        section('Not measured', [f'- {failure}' for failure in _failures(results)]),
        section('How', [f'- {note}' for note in _notes(results)]),
    ]
    return '\n'.join(part for part in parts if part)


def write_markdown(results: Results, path: str | os.PathLike, before: str = '') -> None:
    """Write the tables; the file is written whole or not at all."""
    write_text(to_markdown(results, before), path)


def section(title: str, lines: Sequence[str]) -> str:
    """Lines below a heading; empty without lines."""
    return '\n'.join([f'## {title}', '', *lines, '']) if lines else ''


def condition(result: CaseResult) -> str:
    """The condition, with what is not a matter of course about the computing."""
    setup = str(Setup(**result.case['setup']))
    return result.label if setup == 'cpu' else f'{result.label}, {setup}'


def _rows(results: Results, kind: str, has: Callable[[Measured], object]) -> list[Row]:
    """The subjects of a kind of case that have something."""
    return [
        Row(result, subject)
        for result in results.of_kind(kind)
        for subject in result.subjects
        if has(subject)
    ]


#: The condition, with the computing and without it, and the subject.
NETWORK = Column('network, batch × pixels', lambda row: condition(row.result), left=True)
COUNTED = Column('network, batch × pixels', lambda row: row.result.label, left=True)
KERNEL = Column('kernel, channels', lambda row: condition(row.result), left=True)
SUBJECT = Column('subject', lambda row: row.subject.name, left=True)


def _part(title: str, quantity: str) -> Column:
    """The median of a quantity, in milliseconds."""
    return Column(title, lambda row: middle(row.subject.spread(quantity)))


def _whole(title: str, quantity: str) -> Column:
    """A quantity with its quartiles, in milliseconds."""
    return Column(title, lambda row: milliseconds(row.subject.spread(quantity)))


def _over_first(title: str, cell: Callable[[Row], str]) -> Column:
    """What is over the first subject's, which itself has none."""
    return Column(title, lambda row: NOTHING if row.is_first else cell(row))


def _step_over(title: str) -> Column:
    return _over_first(title, lambda row: times(row.subject.ratio(row.result.first)))


def _rate(title: str, quantity: str) -> Column:
    """Images a second."""

    def cell(row: Row) -> str:
        found, case = row.subject.spread(quantity), row.result.case
        if found is None:
            return NOTHING
        # The batch is that of one process and one micro-batch.
        batches = case['accumulate'] * case['processes'] if quantity == 'step' else 1
        return digits(case['batch'] * batches / found.median)

    return Column(title, cell)


def _training(results: Results) -> list[str]:
    columns = [
        NETWORK,
        SUBJECT,
        _whole('step, ms (quartiles)', 'step'),
        _step_over('over the first (quartiles)'),
        _part('forward', 'forward'),
        _part('backward', 'backward'),
        _part('pull back', 'pull_back'),
        _part('optimizer', 'optimizer'),
        _part('generate', 'generate'),
        _rate('images/s', 'step'),
    ]
    return markdown_table(columns, _rows(results, 'network', lambda s: s.samples('step')))


def _sent(results: Results) -> list[str]:
    rows = _rows(results, 'network', lambda subject: subject.sent)

    def of_kind(kind: str) -> Column:
        return Column(kind, lambda row: mebibytes(row.subject.sent.get(kind, 0)))

    def over(row: Row) -> str:
        first = sum(row.result.first.sent.values())
        return f'{sum(row.subject.sent.values()) / first:.3f}' if first else NOTHING

    columns = [
        NETWORK,
        SUBJECT,
        *map(of_kind, dict.fromkeys(kind for row in rows for kind in row.subject.sent)),
        Column('all', lambda row: mebibytes(sum(row.subject.sent.values()))),
        _over_first('over the first', over),
    ]
    lines = markdown_table(columns, rows)
    return ['In MiB, of each process.', '', *lines] if lines else []


def _operations(results: Results) -> list[str]:
    def more(row: Row) -> str:
        counted = row.subject.operations, row.result.first.operations
        if not all(counted):
            return NOTHING
        found, first = (each['network'] + each['update'] for each in counted)
        return str(found - first)

    columns = [
        COUNTED,
        SUBJECT,
        Column('forward and backward', lambda row: str(row.subject.operations['network'])),
        Column('pull back and generate', lambda row: str(row.subject.operations['update'])),
        _over_first('more than the first', more),
        Column('GFLOP', lambda row: digits(row.subject.operations['flops'] / 1e9)),
        Column('GB read and written', lambda row: digits(row.subject.operations['bytes'] / 1e9)),
    ]
    return markdown_table(columns, _rows(results, 'network', lambda s: s.operations))


def _computed(results: Results) -> list[str]:
    columns = [COUNTED, SUBJECT]
    for name in (gpu.name for gpu in GPUS):

        def seconds(row: Row, name=name) -> str:
            return digits(1e3 * row.subject.computed[name])

        def over(row: Row, name=name) -> str:
            first = row.result.first.computed.get(name)
            return f'{row.subject.computed[name] / first:.2f}' if first else NOTHING

        columns += [Column(f'{name}, ms', seconds), _over_first('over the first', over)]
    return markdown_table(columns, _rows(results, 'network', lambda s: s.computed))


def _checks(results: Results) -> list[str]:
    def ratio(title: str, cell: Callable[[Check], str]) -> Column:
        return Column(title, lambda row: NOTHING if row.ratio is None else cell(row))

    columns = [
        Column('network', lambda row: row.network, left=True),
        Column('subject', lambda row: row.subject, left=True),
        Column('computed, s', lambda row: f'{row.seconds:.3f}'),
        Column('published, s', lambda row: f'{row.published:.3f}'),
        Column('error', lambda row: f'{100 * row.error:+.0f} %'),
        ratio('over plain, computed', lambda row: f'{row.ratio:.2f}'),
        ratio('published', lambda row: f'{row.published_ratio:.2f}'),
        ratio('error', lambda row: f'{100 * row.ratio_error:+.0f} %'),
    ]
    return markdown_table(columns, checks(results.of_kind('network')))


def _memory(results: Results) -> list[str]:
    rows = _rows(results, 'network', lambda subject: subject.bytes)

    def kept(name: str, title: str = '') -> Column:
        def cell(row: Row) -> str:
            found = row.subject.bytes.get(name)
            return NOTHING if found is None else mebibytes(found)

        return Column(title or name, cell)

    def over(row: Row) -> str:
        first = row.result.first.saved_bytes
        return f'{row.subject.saved_bytes / first:.3f}' if first else NOTHING

    names = ('parameters', 'buffers', 'gradients', 'optimizer', 'activations', 'kernels')
    columns = [
        NETWORK,
        SUBJECT,
        *map(kept, names),
        _over_first('activations + kernels over the first', over),
    ]
    if any('peak' in row.subject.bytes for row in rows):
        columns.append(kept('peak', 'peak of the GPU'))
    lines = markdown_table(columns, rows)
    return ['In MiB.', '', *lines] if lines else []


def _evaluation(results: Results) -> list[str]:
    columns = [
        NETWORK,
        SUBJECT,
        _whole('training form, ms (quartiles)', 'eval'),
        _whole('deploy form, ms (quartiles)', 'deploy'),
        Column(
            'training over deploy form (quartiles)',
            lambda row: times(row.subject.ratio(row.subject, 'eval', 'deploy')),
        ),
        _rate('images/s, training form', 'eval'),
        _rate('images/s, deploy form', 'deploy'),
    ]
    return markdown_table(columns, _rows(results, 'network', lambda s: s.samples('eval')))


def _kernels(results: Results) -> list[str]:
    columns = [
        KERNEL,
        SUBJECT,
        _whole('both, ms (quartiles)', 'step'),
        _step_over('over the floor (quartiles)'),
        _part('generate', 'generate'),
        _part('pull back', 'pull_back'),
    ]
    return markdown_table(columns, _rows(results, 'kernel', lambda s: s.samples('step')))


def _failures(results: Results) -> list[str]:
    where: dict[tuple[str, str], list[str]] = {}
    for result in results.cases:
        for subject in result.subjects:
            for what, reason in subject.failures.items():
                where.setdefault((f'{subject.name} ({what})', reason), []).append(result.label)
    return [
        f'{what}: {reason} ({labels[0]}{f" and {len(labels) - 1} more" if labels[1:] else ""})'
        for (what, reason), labels in where.items()
    ]


def _notes(results: Results) -> list[str]:
    kinds = {result.case['kind'] for result in results.cases}
    measures = {
        measure for result in results.of_kind('network') for measure in result.case['measures']
    }
    at_most = 'at most ' if results.interrupted else ''
    notes = [
        f'`{results.command}`',
        f'{results.machine}; {results.software}.',
        f'From {results.started} to {results.finished or "its **interruption**"}; load average of '
        f'the machine {min(results.load)} to {max(results.load)}.',
    ]
    if 'kernel' in kinds or {'train', 'eval'} & measures:
        notes.append(
            f'Medians of {at_most}{results.repeats} repeats after {results.warm_up} of warm-up. In '
            'each repeat every subject runs once, another one first each time; ratios are taken '
            'repeat by repeat.'
        )
    if 'train' in measures:
        notes.append(
            'A step trains on random images that are there already: forward, loss, backward, SGD '
            'with momentum. *Generate* is making all kernels, *pull back* taking their gradients '
            'to the branches. In squeezed training they are parts of the update. Online they are '
            'within the passes: they are measured by themselves in each repeat, and subtracted '
            'from *forward* and *backward*; copying a kernel into another memory format and '
            'casting it count as forward. Blocks that make no kernel have none.'
        )
    cases = [result.case for result in results.of_kind('network')]
    if any(case['accumulate'] > 1 for case in cases):
        notes.append('A step of several micro-batches runs each of them, then updates once.')
    if any(case['processes'] > 1 for case in cases) and 'train' in measures:
        notes.append(
            'Processes train with DDP on this machine, each with its own batch. They begin each '
            "step together, and a part takes as long as the slowest one's. Online, generating and "
            'pulling back stay within forward and backward. Bytes are those of the tensors that '
            'a process gives to a collective in one step, counted as torch dispatches it; a ring '
            'of N sends 2 (N − 1) / N of what is reduced.'
        )
    if 'operations' in measures:
        notes.append(
            "Operations are those that torch dispatches on the meta device, which takes a GPU's "
            "paths: views, memory without values and the optimizer's own step left out; shared "
            'out, those of the process with most. Floating-point work is that of convolutions '
            'and matrix products, a multiply and an add counting two; each operation reads its '
            'inputs and writes its outputs once.'
        )
        speeds = '; '.join(
            f'{gpu.name}: convolutions {gpu.convolution / 1e12:g} and products '
            f'{gpu.product / 1e12:g} TFLOP/s, memory {gpu.memory / 1e12:g} TB/s, to other GPUs '
            f'{gpu.link / 1e12:g} TB/s'
            for gpu in GPUS
        )
        notes.append(
            '**Computed, not measured**, is what a step of float32, with its optimizer, would '
            f'take: for each operation a launch of {1e6 * LAUNCH:g} µs, which is assumed, and '
            "then its floating-point work or its memory traffic at the datasheet's speed, "
            f"whichever takes longer. {speeds}. A100 and H100 convolve in TF32, as is torch's "
            'default. Gradients are reduced behind the backward pass. Nothing is fitted.'
        )
    if checks(results.of_kind('network')):
        notes.append(
            'Published are the seconds a batch of '
            f'{PUBLISHED_BATCH * PUBLISHED_PROCESSES} on {PUBLISHED_PROCESSES} {PUBLISHED_ON} of '
            "the paper; computed against them are the plain network and the released code's "
            'blocks.'
        )
    for kind, what in dict(network='step', kernel='kernel').items():
        steps = max((result.case['setup']['steps'] for result in results.of_kind(kind)), default=1)
        if steps > 1:
            notes.append(f'A repeat of a {what} is {steps} runs in a row, divided by {steps}.')
    if 'memory' in measures:
        notes.append(
            '*Activations* is what autograd has saved at the end of the forward pass; *kernels* '
            'are generated kernels and what making them has saved, counted apart. Memory that is '
            'needed for a moment only is in the peak of a GPU alone.'
        )
    if 'eval' in measures:
        notes.append(
            'An evaluation step is the network in eval mode without gradients; in deploy form '
            'BatchNorms are folded.'
        )
    if 'kernel' in kinds:
        notes.append(
            'The floor is the matrix products that a block cannot do without, one forward and two '
            'backward each, and reading each parameter and writing each gradient once; all other '
            'branches are taken to cost nothing.'
        )
    return notes


def milliseconds(found: Spread | None) -> str:
    """Seconds as milliseconds: ``'12.3 (11.9 to 12.8)'``."""
    if found is None:
        return NOTHING
    found = found.times(1e3)
    return f'{digits(found.median)} ({digits(found.lower)} to {digits(found.upper)})'


def middle(found: Spread | None) -> str:
    """The median of seconds, as milliseconds."""
    return NOTHING if found is None else digits(1e3 * found.median)


def times(found: Spread | None) -> str:
    """A ratio: ``'1.23 (1.21 to 1.26)'``; a single number where there is no spread."""
    if found is None:
        return NOTHING
    if found.lowest == found.highest:
        return f'{found.median:.3f}'
    return f'{found.median:.2f} ({found.lower:.2f} to {found.upper:.2f})'


def mebibytes(count: int) -> str:
    """Bytes as MiB."""
    return f'{count / MIB:.0f}' if count >= 100 * MIB else f'{count / MIB:.3g}'
