"""Frequencies in kernels, against SciPy's transform, and the filters of the prior."""

import pytest
import torch
from scipy.fft import dctn
from torch import nn

from mmorepa.convs import OREPAConv2d, OREPARepVGGConv2d
from mmorepa.convs.kernels import frequency_prior
from mmorepa.lab.analysis.spectrum import (
    constant_share,
    cosine_basis,
    distinct_filters,
    energy,
    kernel_of,
    measure,
    rows_and_columns_share,
    shares,
    total,
)
from support import make_trained_like

SAME = 1e-9  # relative, two ways to the same number in float64


@pytest.mark.parametrize('size', [1, 3, 5, 7])
class TestEnergy:
    def test_as_scipy_has_it(self, size):
        kernel = torch.randn(4, 3, size, size, dtype=torch.float64)
        expected = (dctn(kernel.numpy(), axes=(2, 3), norm='ortho') ** 2).sum((0, 1))
        torch.testing.assert_close(energy(kernel), torch.from_numpy(expected), rtol=SAME, atol=SAME)

    def test_adds_up(self, size):
        kernel = torch.randn(4, 3, size, size)
        torch.testing.assert_close(energy(kernel).sum(), kernel.double().square().sum())

    def test_basis_is_orthonormal(self, size):
        basis = cosine_basis(size)
        torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize('size', [3, 5])
def test_a_filter_of_the_prior_has_one_frequency(size):
    """Those of the frequencies below k: by rows in the first half, by columns in the second."""
    filters = frequency_prior(4 * size, size)
    for frequency in range(1, size):
        by_rows, by_columns = filters[frequency - 1], filters[2 * size + frequency - 1]
        for values, place in ((by_rows, (frequency, 0)), (by_columns, (0, frequency))):
            found = energy(values[None])
            assert found[place] == pytest.approx(size**2 / 2, rel=SAME)
            assert found.sum() == pytest.approx(size**2 / 2, rel=SAME)


@pytest.mark.parametrize(
    'channels, size, expected',
    [
        (
            12,
            3,
            {'rows 1': 2, 'rows 2': 2, 'zero': 2, 'constant': 2, 'columns 1': 2, 'columns 2': 2},
        ),
        (4, 3, {'rows 1': 1, 'rows 2': 1, 'columns 1': 1, 'columns 2': 1}),
        (1, 3, {'rows 1': 1}),
        (
            20,
            5,
            {
                **{f'rows {n}': 2 for n in range(1, 5)},
                'zero': 2,
                'constant': 2,
                **{f'columns {n}': 2 for n in range(1, 5)},
            },
        ),
    ],
    ids=str,
)
def test_filters_that_differ(channels, size, expected):
    filters = distinct_filters(channels, size)
    assert {found.text: found.channels for found in filters} == expected


def test_filters_are_told_apart_up_to_their_sign():
    filters = distinct_filters(64, 3)
    rows = {
        tuple(torch.tensor(found.values).flatten().round(decimals=4).tolist()) for found in filters
    }
    for values in frequency_prior(64, 3)[:, 0].flatten(1):
        values = values.float().round(decimals=4) + 0.0
        assert tuple(values.tolist()) in rows or tuple((-values + 0.0).tolist()) in rows
    assert sum(found.channels for found in filters) == 64


@pytest.mark.parametrize('size', [3, 5, 7])
def test_without_the_prior_is_with_its_scale_at_zero(size):
    block = make_trained_like(OREPAConv2d(4, 6, size, bias=False)).double()
    torch.testing.assert_close(kernel_of(block), block.squeeze(), rtol=SAME, atol=SAME)
    without = kernel_of(block, with_prior=False)
    assert (without - block.squeeze()).norm() > 0.01 * without.norm()
    for name, module in block.named_modules():
        if name.endswith('.prior'):
            nn.init.zeros_(module.scale)
    torch.testing.assert_close(without, block.squeeze(), rtol=SAME, atol=SAME)


def test_of_a_block_that_is_nothing_else():
    block = make_trained_like(OREPAConv2d(4, 12, 3, bias=False, branches=['prior']))
    assert not kernel_of(block, with_prior=False).any()
    (spectrum,) = measure(block)
    assert spectrum.size == pytest.approx(1, rel=SAME)
    whole = torch.tensor(shares(spectrum.whole))
    assert whole[1:, 1:].abs().max() < SAME  # waves along one axis have no other frequency


def test_of_a_network():
    model = nn.Sequential(
        OREPAConv2d(3, 4, 7),
        OREPAConv2d(4, 4, 1),
        OREPAConv2d(4, 4, 3, branches=['original']),
        OREPARepVGGConv2d(4, 4, 3, padding=1),
    )
    found = measure(make_trained_like(model))
    assert [(spectrum.name, spectrum.kind) for spectrum in found] == [
        ('0', 'stem'),
        ('3.original.conv', '3x3'),
    ]
    assert [len(spectrum.whole) for spectrum in found] == [7, 3]
    assert all(spectrum.size > 0 for spectrum in found)


def test_parts_of_the_energy():
    spectrum = [[4.0, 1.0, 1.0], [2.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
    assert total(spectrum) == 16
    assert constant_share(spectrum) == 4 / 16
    assert rows_and_columns_share(spectrum) == 4 / 16


def test_at_the_start_of_training_the_prior_adds_nothing():
    (spectrum,) = measure(OREPAConv2d(4, 6, 3))
    assert spectrum.size == 0
    assert total(spectrum.change) == 0
