"""What is printed, from numbers that are known."""

import pytest

from lab.benchmark.made_up import GPU, MIB, kernel_result, measured, network_result, results
from mmorepa.lab.benchmark.growth import lines, sentences
from mmorepa.lab.benchmark.results import Measured
from mmorepa.lab.benchmark.roofline import GPUS
from mmorepa.lab.benchmark.spread import spread
from mmorepa.lab.benchmark.tables import mebibytes, times, to_markdown, write_markdown
from mmorepa.lab.scaffold import digits

GPU_NAMES = [gpu.name for gpu in GPUS]


def rows_of(text, title):
    """The cells of the table under a title, header first."""
    section = text.split(f'## {title}\n')[1].split('\n## ')[0]
    table = [line for line in section.splitlines() if line.startswith('|')]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    assert len({len(row) for row in cells}) == 1
    return [cells[0], *cells[2:]]


def test_training_step():
    text = to_markdown(
        results(network_result(measured('none'), measured('OREPA', 1.5, generation=True)))
    )
    header, plain, ours = rows_of(text, 'Training step')
    assert header[2:4] == ['step, ms (quartiles)', 'over the first (quartiles)']
    assert plain == [
        'resnet18, 8 × 224²',
        'none',
        '10000 (9500 to 11000)',
        '–',
        '4000',
        '5000',
        '–',
        '1000',
        '–',
        '0.8',
    ]
    assert ours == [
        'resnet18, 8 × 224²',
        'OREPA',
        '15000 (14250 to 16500)',
        '1.500',
        '4500',
        '4500',
        '3000',
        '1500',
        '1500',
        '0.533',
    ]


@pytest.mark.parametrize(
    'condition, rate', [({}, '0.8'), ({'processes': 2}, '1.6'), ({'accumulate': 4}, '3.2')], ids=str
)
def test_images_of_all_processes_and_micro_batches_count(condition, rate):
    text = to_markdown(results(network_result(measured('none'), **condition)))
    assert rows_of(text, 'Training step')[1][-1] == rate
    assert rows_of(text, 'Evaluation step')[1][-2:] == ['4', '8']


def test_memory():
    text = to_markdown(
        results(network_result(measured('none'), measured('OREPA', generation=True)))
    )
    _, plain, ours = rows_of(text, 'Memory of a training step')
    assert plain[2:] == ['4', '1', '3', '2', '100', '0', '–']
    assert ours[2:] == ['4', '1', '3', '2', '100', '20', '1.200']


def test_peak_of_a_gpu():
    ours = measured('OREPA')
    ours.bytes['peak'] = 400 * MIB
    text = to_markdown(results(network_result(measured('none'), ours, setup=GPU)))
    header, plain, row = rows_of(text, 'Memory of a training step')
    assert header[-1] == 'peak of the GPU'
    assert (plain[-1], row[-1]) == ('–', '400')
    assert row[0] == 'resnet18, 8 × 224², cuda, AMP, channels_last'
    assert 'A repeat of a step is 4 runs in a row, divided by 4.' in text


def test_evaluation():
    text = to_markdown(results(network_result(measured('none'))))
    _, row = rows_of(text, 'Evaluation step')
    assert row[2:5] == ['2000 (1900 to 2200)', '1000 (950 to 1100)', '2.000']
    assert row[5:] == ['4', '8']


def test_bytes_sent():
    plain = measured('none', sent=dict(allreduce=10 * MIB, broadcast=MIB))
    ours = measured('OREPA-shared-out', sent=dict(allreduce=10 * MIB, broadcast=12 * MIB))
    text = to_markdown(results(network_result(plain, ours, processes=2)))
    header, *rows = rows_of(text, 'Bytes sent in a training step')
    assert header[2:] == ['allreduce', 'broadcast', 'all', 'over the first']
    assert [row[2:] for row in rows] == [['10', '1', '11', '–'], ['10', '12', '22', '2.000']]
    assert 'give' in text and 'Processes train with DDP' in text


def counted(name, network, update, seconds):
    operations = dict(network=network, update=update, flops=int(5e9), bytes=int(2e9))
    return measured(name, operations=operations, computed=dict.fromkeys(GPU_NAMES, seconds))


def test_operations():
    subjects = counted('none', 100, 0, 0.1), counted('OREPA-squeezed', 100, 40, 0.12)
    condition = dict(measures=('operations',), batch=64, processes=4)
    text = to_markdown(results(network_result(*subjects, **condition)))
    _, plain, ours = rows_of(text, 'Operations of a training step')
    assert plain[2:] == ['100', '0', '–', '5', '2']
    assert ours[2:] == ['100', '40', '40', '5', '2']
    header, plain, ours = rows_of(text, 'What a training step would cost: computed, not measured')
    assert header[2:4] == ['V100, ms', 'over the first']
    assert plain[2:4] == ['100', '–']
    assert ours[2:4] == ['120', '1.20']
    assert '**Computed, not measured**' in text


def test_computed_against_published():
    subjects = counted('none', 100, 0, 0.043), counted('released-OREPA', 100, 40, 0.06)
    condition = dict(measures=('operations',), batch=64, processes=4)
    text = to_markdown(results(network_result(*subjects, **condition)))
    _, plain, ours = rows_of(text, 'Computed against published')
    assert plain == ['resnet18', 'none', '0.043', '0.086', '-50 %', '–', '–', '–']
    assert ours == [
        'resnet18',
        'released-OREPA',
        '0.060',
        '0.120',
        '-50 %',
        '1.40',
        '1.40',
        '+0 %',
    ]


def test_kernels():
    ours = measured('OREPA', 0.013, generation=True)
    text = to_markdown(results(kernel_result(measured('floor', 0.01), ours)))
    _, floor, ours = rows_of(text, 'Generating a kernel')
    assert floor[:4] == ['3×3, 64 → 64', 'floor', '100 (95 to 110)', '–']
    assert ours[3:] == ['1.300', '13', '26']


def test_failures_are_named_once():
    def failed():
        return Measured('DBB', failures=dict(build='no such thing'))

    text = to_markdown(
        results(
            network_result(measured('none'), failed()),
            network_result(measured('none'), failed(), batch=16),
        )
    )
    assert text.count('no such thing') == 1
    assert '- DBB (build): no such thing (resnet18, 8 × 224² and 1 more)' in text
    assert len(rows_of(text, 'Training step')) == 3


def test_sections_without_numbers_are_left_out():
    text = to_markdown(results(kernel_result(measured('floor'), measured('OREPA'))))
    for title in ('Training step', 'Memory', 'Evaluation', 'Growth', 'Not measured'):
        assert f'## {title}' not in text


def test_how_names_command_hardware_and_versions(tmp_path):
    made = results(network_result(measured('none')))
    path = tmp_path / 'deep' / 'benchmark.md'
    write_markdown(made, path)
    text = path.read_text()
    assert text == to_markdown(made)
    for part in (made.command, made.machine, made.software, '3 repeats after 1', '0.5 to 1.0'):
        assert part in text
    made.finished, made.interrupted = None, True
    assert 'to its **interruption**' in to_markdown(made)
    assert 'at most 3 repeats' in to_markdown(made)


def test_a_bar_does_not_end_a_cell():
    text = to_markdown(results(network_result(measured('a|b'))))
    assert '| a\\|b |' in text


class TestGrowth:
    @staticmethod
    def grown():
        """A step in proportion to the batch, OREPA's 3 s longer; and one more resolution."""
        cases = []
        for batch, size in ((8, 224), (16, 224), (32, 224), (8, 448)):
            plain = measured('none')
            ours = measured('OREPA', generation=True)
            images = batch * size**2 / (8 * 224**2)
            plain.seconds['step'] = [images] * 3
            ours.seconds['step'] = [images + 3] * 3
            cases.append(network_result(plain, ours, batch=batch, size=size))
        return results(*cases)

    def test_lines_vary_one_thing(self):
        batch, size = lines(self.grown())
        assert (batch.axis, batch.values) == ('batch', [8, 16, 32])
        assert (size.axis, size.values) == ('size', [224, 448])

    def test_sentences(self):
        batch, size = sentences(self.grown())
        assert batch.startswith(
            'resnet18, batch from 8 to 32, 4 times: a step takes 4 (none), 1.75 '
        )
        assert 'OREPA over none goes from 4.00 to 1.75' in batch
        assert 'generating the kernels of OREPA takes 3000 and 3000 ms' in batch
        assert '4 times the pixels: a step takes 4 (none)' in size

    def test_a_subject_that_failed_somewhere_is_left_out(self):
        made = self.grown()
        made.cases[1].subjects[1].seconds = {}
        batch, size = lines(made)
        assert batch.names == ['none']
        assert size.names == ['none', 'OREPA']

    def test_nothing_varied(self):
        assert lines(results(network_result(measured('none')))) == []


@pytest.mark.parametrize(
    'number, expected',
    [(0.01234, '0.0123'), (1.0, '1'), (99.94, '99.9'), (123.4, '123'), (12345.6, '12346')],
)
def test_digits(number, expected):
    assert digits(number) == expected


def test_times():
    assert times(None) == '–'
    assert times(spread([1.0, 1.5, 2.0])) == '1.50 (1.25 to 1.75)'
    assert times(spread([1.0234])) == '1.023'


def test_mebibytes():
    assert mebibytes(MIB // 2) == '0.5'
    assert mebibytes(1234 * MIB) == '1234'
