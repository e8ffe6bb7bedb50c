"""Squeezed kernels against numbers that the released code printed for the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmorepa.convs import OREPAConv2d

RELEASED = 1e-6  # largest difference of any kernel number, relative to the kernel's largest

FIXTURES = np.load(Path(__file__).parents[1] / 'data' / 'released_kernels.npz')

KXK_NAMES = dict(
    weight_orepa_origin='original.weight',
    weight_orepa_avg_conv='average.weight',
    weight_orepa_pfir_conv='prior.weight',
    weight_orepa_1x1='pointwise.weight',
    weight_orepa_1x1_kxk_idconv1='pointwise_kxk.residual',
    weight_orepa_1x1_kxk_conv2='pointwise_kxk.weight',
    weight_orepa_gconv_dw='separable.depthwise',
    weight_orepa_gconv_pw='separable.pointwise',
)
KXK_ROWS = ('original', 'average', 'prior', 'pointwise_kxk', 'pointwise', 'separable')
POINTWISE_NAMES = dict(
    weight_or1x1_origin='original.weight',
    weight_or1x1_l2i_conv1='pointwise_pointwise.first',
    weight_or1x1_l2i_conv2='pointwise_pointwise.second',
)
POINTWISE_ROWS = ('original', 'pointwise_pointwise')


def released_state(case: str, groups: int) -> dict[str, torch.Tensor]:
    """The weights of a case under the names of this package."""
    state = {}
    for key in FIXTURES.files:
        if not key.startswith(f'{case}/') or key.endswith('/kernel'):
            continue
        name = key.removeprefix(f'{case}/')
        layer, _, name = name.rpartition('.')
        prefix = f'{layer.removeprefix("weight")}.' if layer else ''
        value = torch.from_numpy(FIXTURES[key])
        if name == 'vector':
            rows = KXK_ROWS if len(value) == 6 else POINTWISE_ROWS
            for row, scale in zip(rows, value):
                state[f'{prefix}{row}.scale'] = scale
            continue
        if name == 'weight_orepa_gconv_pw' and groups > 1:
            # The release reads it with the groups interleaved: (O/g, g, ...).
            shape = value.shape
            value = value.reshape(-1, groups, *shape[1:]).transpose(0, 1).reshape(shape)
        state[prefix + (KXK_NAMES | POINTWISE_NAMES)[name]] = value
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
    conv.kernel.load_state_dict(released_state(case, groups))
    expected = torch.from_numpy(FIXTURES[f'{case}/kernel'])
    difference = (conv.squeeze() - expected).abs().max() / expected.abs().max()
    assert difference < RELEASED
