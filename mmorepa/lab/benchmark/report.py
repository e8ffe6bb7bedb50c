"""What a benchmark found, as Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from ...checkpoints.files import written_whole
from . import targets
from .growth import sentences
from .plan import Setup
from .results import CaseResult, Measured, Results
from .roofline import GPUS, LAUNCH, PUBLISHED_BATCH, PUBLISHED_ON, PUBLISHED_PROCESSES, checks
from .spread import Spread, digits

MIB = 2**20
NOTHING = '–'


def to_markdown(results: Results) -> str:
    """The tables that there are numbers for, and below them how they came about."""
    parts = [
        _section('Targets', _targets(results)) if results.preset == 'targets' else '',
        _section('Training step', _training(results)),
        _section('Bytes sent in a training step', _sent(results)),
        _section('Operations of a training step', _operations(results)),
        _section('What a training step would cost: computed, not measured', _computed(results)),
        _section('Computed against published', _checks(results)),
        _section('Memory of a training step', _memory(results)),
        _section('Evaluation step', _evaluation(results)),
        _section('Generating a kernel', _kernels(results)),
        _section('Growth', [f'- {sentence}' for sentence in sentences(results)]),
        _section('Not measured', [f'- {failure}' for failure in _failures(results)]),
        _section('How', [f'- {note}' for note in _notes(results)]),
    ]
    return '\n'.join(part for part in parts if part)


def write_markdown(results: Results, path: str | os.PathLike) -> None:
    """Write the tables; the file is written whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(to_markdown(results), encoding='utf-8')


def _section(title: str, lines: Sequence[str]) -> str:
    return '\n'.join([f'## {title}', '', *lines, '']) if lines else ''


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns line up at the right but for the first two; empty without rows."""
    if not rows:
        return []
    rule = ['---', '---', *['--:'] * (len(header) - 2)]
    # A bar would end the cell.
    return [
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |'
        for row in (header, rule, *rows)
    ]


def _condition(result: CaseResult) -> str:
    """The condition, with what is not a matter of course about the computing."""
    setup = str(Setup(**result.case['setup']))
    return result.label if setup == 'cpu' else f'{result.label}, {setup}'


def _subjects(results: Results, kind: str, quantity: str) -> Iterable[tuple[CaseResult, Measured]]:
    """All subjects of a kind of case that have samples of a quantity."""
    for result in results.of_kind(kind):
        for subject in result.subjects:
            if subject.samples(quantity):
                yield result, subject


def _training(results: Results) -> list[str]:
    header = (
        'network, batch × pixels',
        'subject',
        'step, ms (quartiles)',
        'over the first (quartiles)',
        'forward',
        'backward',
        'pull back',
        'optimizer',
        'generate',
        'images/s',
    )
    rows = []
    for result, subject in _subjects(results, 'network', 'step'):
        parts = ('forward', 'backward', 'pull_back', 'optimizer', 'generate')
        ratio = subject.ratio(result.first)
        rows.append(
            (
                _condition(result),
                subject.name,
                milliseconds(subject.spread('step')),
                NOTHING if subject is result.first else times(ratio),
                *[middle(subject.spread(part)) for part in parts],
                _rate(result, subject, 'step'),
            )
        )
    return _table(header, rows)


def _sent(results: Results) -> list[str]:
    measured = [
        (result, subject)
        for result in results.of_kind('network')
        for subject in result.subjects
        if subject.sent
    ]
    kinds = list(dict.fromkeys(kind for _, subject in measured for kind in subject.sent))
    header = ('network, batch × pixels', 'subject', *kinds, 'all', 'over the first')
    rows = []
    for result, subject in measured:
        first, whole = (sum(s.sent.values()) for s in (result.first, subject))
        over = NOTHING if subject is result.first or not first else f'{whole / first:.3f}'
        cells = [mebibytes(subject.sent.get(kind, 0)) for kind in kinds]
        rows.append((_condition(result), subject.name, *cells, mebibytes(whole), over))
    lines = _table(header, rows)
    return ['In MiB, of each process.', '', *lines] if lines else []


def _counted(results: Results) -> Iterable[tuple[CaseResult, Measured]]:
    """All subjects whose operations were counted."""
    for result in results.of_kind('network'):
        for subject in result.subjects:
            if subject.operations:
                yield result, subject


def _operations(results: Results) -> list[str]:
    header = (
        'network, batch × pixels',
        'subject',
        'forward and backward',
        'pull back and generate',
        'more than the first',
        'GFLOP',
        'GB read and written',
    )
    rows = []
    for result, subject in _counted(results):
        found, first = subject.operations, result.first.operations
        more = NOTHING
        if first and subject is not result.first:
            of_both = [counted['network'] + counted['update'] for counted in (found, first)]
            more = str(of_both[0] - of_both[1])
        rows.append(
            (
                result.label,
                subject.name,
                str(found['network']),
                str(found['update']),
                more,
                digits(found['flops'] / 1e9),
                digits(found['bytes'] / 1e9),
            )
        )
    return _table(header, rows)


def _computed(results: Results) -> list[str]:
    header = ['network, batch × pixels', 'subject']
    for gpu in GPUS:
        header += [f'{gpu.name}, ms', 'over the first']
    rows = []
    for result, subject in _counted(results):
        row = [result.label, subject.name]
        for gpu in GPUS:
            seconds, first = (s.computed[gpu.name] for s in (subject, result.first))
            over = NOTHING if subject is result.first else f'{seconds / first:.2f}'
            row += [digits(1e3 * seconds), over]
        rows.append(row)
    return _table(header, rows)


def _checks(results: Results) -> list[str]:
    header = (
        'network',
        'subject',
        'computed, s',
        'published, s',
        'error',
        'over none, computed',
        'published',
        'error',
    )
    rows = []
    for row in checks(results.of_kind('network')):
        ratios = (NOTHING, NOTHING, NOTHING)
        if row.ratio is not None:
            ratios = (
                f'{row.ratio:.2f}',
                f'{row.published_ratio:.2f}',
                f'{100 * row.ratio_error:+.0f} %',
            )
        rows.append(
            (
                row.network,
                row.subject,
                f'{row.seconds:.3f}',
                f'{row.published:.3f}',
                f'{100 * row.error:+.0f} %',
                *ratios,
            )
        )
    return _table(header, rows)


def _memory(results: Results) -> list[str]:
    header = (
        'network, batch × pixels',
        'subject',
        'parameters',
        'buffers',
        'gradients',
        'optimizer',
        'activations',
        'kernels',
        'activations + kernels over the first',
    )
    rows = []
    measured = [
        (result, subject)
        for result in results.of_kind('network')
        for subject in result.subjects
        if subject.bytes
    ]
    has_peak = any('peak' in subject.bytes for _, subject in measured)
    for result, subject in measured:
        names = ('parameters', 'buffers', 'gradients', 'optimizer', 'activations', 'kernels')
        first = result.first.saved_bytes
        ratio = f'{subject.saved_bytes / first:.3f}' if first else NOTHING
        row = [
            _condition(result),
            subject.name,
            *[mebibytes(subject.bytes[name]) for name in names],
            NOTHING if subject is result.first else ratio,
        ]
        if has_peak:
            peak = subject.bytes.get('peak')
            row.append(NOTHING if peak is None else mebibytes(peak))
        rows.append(row)
    if has_peak:
        header += ('peak of the GPU',)
    lines = _table(header, rows)
    return ['In MiB.', '', *lines] if lines else []


def _evaluation(results: Results) -> list[str]:
    header = (
        'network, batch × pixels',
        'subject',
        'training form, ms (quartiles)',
        'deploy form, ms (quartiles)',
        'training over deploy form (quartiles)',
        'images/s, training form',
        'images/s, deploy form',
    )
    rows = [
        (
            _condition(result),
            subject.name,
            milliseconds(subject.spread('eval')),
            milliseconds(subject.spread('deploy')),
            times(subject.ratio(subject, 'eval', 'deploy')),
            _rate(result, subject, 'eval'),
            _rate(result, subject, 'deploy'),
        )
        for result, subject in _subjects(results, 'network', 'eval')
    ]
    return _table(header, rows)


def _kernels(results: Results) -> list[str]:
    header = (
        'kernel, channels',
        'subject',
        'both, ms (quartiles)',
        'over the floor (quartiles)',
        'generate',
        'pull back',
    )
    rows = [
        (
            _condition(result),
            subject.name,
            milliseconds(subject.spread('step')),
            NOTHING if subject is result.first else times(subject.ratio(result.first)),
            middle(subject.spread('generate')),
            middle(subject.spread('pull_back')),
        )
        for result, subject in _subjects(results, 'kernel', 'step')
    ]
    return _table(header, rows)


def _targets(results: Results) -> list[str]:
    header = ('what', 'where', 'target', 'found (quartiles)', '')
    rows = []
    for row in targets.rows(results):
        where = _condition(row.result) if row.result else _wanted(row.target)
        at_most = row.target.at_most
        met = {True: 'met', False: '**not met**', None: ''}[row.is_met]
        rows.append(
            (
                row.target.what,
                where,
                NOTHING if at_most is None else f'≤ {at_most:.2f}',
                times(row.found) if row.found else 'not measured',
                met,
            )
        )
    return _table(header, rows)


def _wanted(target: targets.Target) -> str:
    """The condition of a target that was not measured."""
    case = target.case
    if 'kernel_size' in case:
        return f'{case["kernel_size"]}×{case["kernel_size"]}, {case["in_channels"]} channels'
    text = case['network'] + (f', batch {case["batch"]}' if 'batch' in case else '')
    return f'{text}, no GPU here' if case['purpose'] == targets.GPU_STEP else text


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


def _rate(result: CaseResult, subject: Measured, quantity: str) -> str:
    found = subject.spread(quantity)
    return NOTHING if found is None else digits(result.case['batch'] / found.median)


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
