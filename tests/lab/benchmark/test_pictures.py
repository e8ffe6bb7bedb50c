"""Pictures show the numbers."""

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from lab.benchmark.made_up import MIB, kernel_result, measured, network_result, results
from mmorepa.lab.benchmark import pictures
from mmorepa.lab.benchmark.plan import ladder
from mmorepa.lab.benchmark.results import Measured


def full():
    """Everything that there are pictures of."""
    networks = [
        network_result(
            measured('none', scale), measured('OREPA', 1.5 * scale, generation=True), **case
        )
        for scale, case in (
            (1, dict(network='resnet18')),
            (2, dict(network='resnet18', batch=16)),
            (3, dict(network='resnet50')),
            (3, dict(network='resnet18', frozen_stages=2)),
        )
    ]
    kernels = [
        kernel_result(
            measured('floor', channels / 64), measured('OREPA', channels / 32), channels=channels
        )
        for channels in (64, 128)
    ]
    return results(*networks, *kernels)


def heights(axes):
    """Of the bars that are drawn, without those that stand for the legend."""
    return [bar.get_height() for bar in axes.patches if bar.get_height()]


def test_all_pictures_are_written(tmp_path):
    written = pictures.write_pictures(full(), tmp_path)
    assert [path.name for path in written] == ['bars.png', 'split.png', 'growth.png', 'kernels.png']
    for path in written:
        assert matplotlib.image.imread(path).shape[1] > 500
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}


def test_no_numbers_no_picture(tmp_path):
    failed = network_result(Measured('none', failures=dict(build='no')))
    assert pictures.write_pictures(results(failed), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_bars():
    memory, time = pictures.bars(full()).axes
    assert heights(memory) == [110, 110, 130, 130]
    assert heights(time) == [10, 30, 15, 45]
    assert [label.get_text().split('\n')[0] for label in time.get_xticklabels()] == [
        'resnet18',
        'resnet50',
    ]
    assert memory.get_ylabel() == 'MiB, counted tensors'


def test_bars_in_gibibytes_by_the_peak():
    ours = measured('OREPA')
    ours.bytes['peak'] = 3072 * MIB
    memory, _ = pictures.bars(results(network_result(ours))).axes
    assert heights(memory) == [3]
    assert memory.get_ylabel() == 'GiB, peak of the GPU'


def test_bars_of_the_paper():
    subjects = [
        measured(subject.name, 1 + i, rung=subject.rung) for i, subject in enumerate(ladder())
    ]
    memory, time = pictures.bars(results(network_result(*subjects))).axes
    assert [label.get_text() for label in time.get_xticklabels()] == [
        'base',
        '+DBB',
        '+freq. prior',
        '+linear DW',
        '+linear stem',
    ]
    assert heights(time) == [10, 20, 40, 60, 80, 10, 30, 50, 70, 90]


def test_a_subject_that_failed_has_no_bar():
    subjects = [measured(subject.name, rung=subject.rung) for subject in ladder()]
    subjects[-2] = Measured(subjects[-2].name, rung=subjects[-2].rung)
    _, time = pictures.bars(results(network_result(*subjects))).axes
    assert len(heights(time)) == 9


def test_split_adds_up():
    panels = pictures.split(full()).axes
    assert len(panels) == 2
    ends = {}
    for bar in panels[0].patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == {0: pytest.approx(10_000), 1: pytest.approx(15_000)}


def test_growth():
    _, ratios = pictures.growth(full()).axes
    assert [text.get_text() for text in ratios.get_xticklabels()] == ['8', '16']
    assert [list(line.get_ydata()) for line in ratios.lines[::3]] == [[1, 1], [1.5, 1.5]]


def test_kernels():
    times, ratios = pictures.kernels(full()).axes
    assert [list(line.get_ydata()) for line in ratios.lines[::3]] == [[1, 1], [2, 2]]


@pytest.mark.parametrize('name', ['none', 'OREPA', 'MobileOne', 'some-config'])
def test_looks_are_steady(name):
    names = ['none', 'OREPA', 'MobileOne', 'some-config']
    looks = [pictures.look_of(other, names) for other in names]
    assert len(set(looks)) == len(names)


def test_a_quartile_below_zero_is_drawn_on_a_logarithmic_axis():
    """A time that is a difference of two may have one."""
    upper, lower = Figure().subplots(2)
    for axes in (upper, lower):
        axes.errorbar([4, 8], [0.1, 0.2], yerr=[[2, 0.01], [0.02, 0.02]])
    pictures._logarithmic(upper, lower, [4, 8])
    upper.figure.draw_without_rendering()
    assert upper.get_ylim()[0] > 0
    assert len(upper.yaxis.get_ticklocs()) > 1
