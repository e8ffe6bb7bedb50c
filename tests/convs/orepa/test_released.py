"""Squeezed kernels against numbers that the released code printed for the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmorepa.checkpoints.official.names import Layer, orepa, orepa_pointwise, orepa_stem
from mmorepa.convs import OREPAConv2d

RELEASED = 1e-6  # largest difference of any kernel number, relative to the kernel's largest

FIXTURES = np.load(Path(__file__).parents[2] / 'data' / 'released_kernels.npz')
TABLES = {1: orepa_pointwise, 3: orepa, 7: orepa_stem}


def released_state(case: str, layer: Layer) -> dict[str, torch.Tensor]:
    """The weights of a case under the names of this package."""
    names = [key.removeprefix(f'{case}/') for key in FIXTURES.files if key.startswith(f'{case}/')]
    weights = {name: torch.from_numpy(FIXTURES[f'{case}/{name}']) for name in names}
    del weights['kernel']
    state = {}
    for entry in TABLES[layer.kernel_size](layer):
        # Buffers that are constants and the BatchNorm are not among the weights.
        found = [weights.pop(name) for name in entry.released if name in weights]
        if found:
            state.update(zip(map(layer.ours, entry.ours), entry.to_ours(*found)))
    assert not weights
    return state


@pytest.mark.parametrize(
    'case, args, groups',
    [
        ('kxk_g1', (6, 8, 3), 1),
        ('kxk_g4', (8, 12, 3), 4),
        ('kxk_g8', (8, 16, 3), 8),
        ('pointwise_widening', (4, 6, 1), 1),
        ('pointwise_narrowing', (6, 4, 1), 1),
        ('stem', (3, 4, 7), 1),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_squeezed_kernel(case, args, groups, dtype):
    conv = OREPAConv2d(*args, groups=groups, bias=False).to(dtype)
    layer = Layer('', 'conv', 'norm', *args, groups=groups)
    state = released_state(case, layer)
    conv.load_state_dict({key.removeprefix('conv.'): value for key, value in state.items()})
    expected = torch.from_numpy(FIXTURES[f'{case}/kernel'])
    difference = (conv.squeeze() - expected).abs().max() / expected.abs().max()
    assert difference < RELEASED
