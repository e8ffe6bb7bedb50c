"""What is said of the distribution of a kernel, against SciPy and known cases."""

import pytest
import torch
from scipy.stats import kurtosis

from mmorepa.lab.analysis.kernel_statistics import BINS, REACH, bin_centres, statistics

SAME = 1e-9  # relative, two ways to the same number in float64
MANY = 0.05  # absolute, sampling error of the kurtosis of 10^5 numbers


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_as_scipy_and_torch_have_it():
    kernel = random(6, 3, 7, 7) ** 3
    found = statistics(kernel)
    assert found.kurtosis == pytest.approx(kurtosis(kernel.flatten().numpy()), rel=SAME)
    assert found.std == pytest.approx(kernel.std(unbiased=False).item(), rel=SAME)
    assert sorted(found.norms) == pytest.approx(sorted(kernel.flatten(1).norm(dim=1).tolist()))
    assert found.rank == pytest.approx(
        (kernel.norm() / torch.linalg.matrix_norm(kernel.flatten(1), 2)).item() ** 2, rel=SAME
    )


@pytest.mark.parametrize(
    'kernel, expected',
    [(random(100, 10, 10, 10), 0.0), (torch.linspace(-1, 1, 100_000).view(100, 10, 10, 10), -1.2)],
    ids=['normal', 'uniform'],
)
def test_kurtosis_of_known_distributions(kernel, expected):
    assert statistics(kernel).kurtosis == pytest.approx(expected, abs=MANY)


def test_histogram_is_a_density():
    found = statistics(random(8, 3, 7, 7) ** 5)
    assert found.extreme > REACH  # so that something is beyond
    assert sum(found.histogram) * 2 * REACH / BINS == pytest.approx(1, rel=1e-6)
    assert found.histogram[0] + found.histogram[-1] > 0
    centres = bin_centres()
    assert len(centres) == BINS
    assert centres[BINS // 2] == pytest.approx(0, abs=SAME)


def test_energy_by_position():
    kernel = torch.zeros(2, 1, 7, 7)
    kernel[:, :, 3, 3] = 1
    kernel[0, 0, 0, 6] = 1
    found = statistics(kernel)
    assert found.taps[3][3] == pytest.approx(2 / 3, rel=SAME)
    assert found.taps[0][6] == pytest.approx(1 / 3, rel=SAME)
    assert found.centre == pytest.approx(2 / 3, rel=SAME)


def test_one_direction_has_rank_one():
    kernel = random(5)[:, None, None, None] * random(1, 3, 7, 7)
    found = statistics(kernel)
    assert found.rank == pytest.approx(1, rel=SAME)
    assert found.norm_ratio > 1


def test_zeros():
    found = statistics(torch.zeros(2, 3, 7, 7))
    assert (found.std, found.rank, found.centre, found.norm_ratio) == (0, 0, 0, float('inf'))
