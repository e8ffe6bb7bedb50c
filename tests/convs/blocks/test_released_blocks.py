"""Blocks with BatchNorms inside against numbers that the released code printed.

For the same float64 weights: outputs in eval and training mode, and the gradients of the sum of the
cubed training outputs.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mmorepa.convs import DBBConv2d, OREPARepVGGConv2d, RepVGGConv2d
from mmorepa.convs.orepa.branches import filters_first, shares_first
from mmorepa.convs.rows import as_rows

RELEASED = 1e-6  # relative; the release rounds its constants to float32

FIXTURES = np.load(Path(__file__).parents[2] / 'data' / 'released_blocks.npz')

CASES = {
    'dbb': (DBBConv2d, dict(out_channels=6, stride=2)),
    'dbb_g2': (DBBConv2d, dict(out_channels=6, groups=2)),
    'dbb_5x5': (DBBConv2d, dict(out_channels=4, kernel_size=5, padding=2)),
    'repvgg': (RepVGGConv2d, dict(out_channels=4)),
    'repvgg_g2': (RepVGGConv2d, dict(out_channels=4, groups=2)),
    'orepa_repvgg': (OREPARepVGGConv2d, dict(out_channels=4)),
    'orepa_repvgg_s2': (OREPARepVGGConv2d, dict(out_channels=6, stride=2)),
}

OREPA = 'original.conv.kernel'
SCALES = [f'{OREPA}.{row}.scale' for row in ('original', 'average', 'prior', 'pointwise_kxk')]
SCALES += [f'{OREPA}.separable.scale']

#: Released name to ours; a name with a dot at the end stands for all that begin with it.
NAMES = {
    'dbb_origin.conv.': 'original.',
    'dbb_origin.bn.': 'original.norm.',
    'dbb_1x1.conv.': 'pointwise.',
    'dbb_1x1.bn.': 'pointwise.norm.',
    'dbb_avg.conv.': 'average.',
    'dbb_avg.bn.bn.': 'average.inner_norm.',
    'dbb_avg.avgbn.': 'average.norm.',
    'dbb_1x1_kxk.idconv1.weight': 'pointwise_kxk.residual',
    'dbb_1x1_kxk.bn1.bn.': 'pointwise_kxk.inner_norm.',
    'dbb_1x1_kxk.conv2.': 'pointwise_kxk.',
    'dbb_1x1_kxk.bn2.': 'pointwise_kxk.norm.',
    'rbr_dense.conv.': 'original.',
    'rbr_dense.bn.': 'original.norm.',
    'rbr_1x1.conv.': 'pointwise.',
    'rbr_1x1.bn.': 'pointwise.norm.',
    'rbr_identity.': 'identity.norm.',
    'rbr_dense.weight_rbr_origin': f'{OREPA}.original.weight',
    'rbr_dense.weight_rbr_avg_conv': f'{OREPA}.average.weight',
    'rbr_dense.weight_rbr_pfir_conv': f'{OREPA}.prior.weight',
    'rbr_dense.weight_rbr_1x1_kxk_idconv1': f'{OREPA}.pointwise_kxk.residual',
    'rbr_dense.weight_rbr_1x1_kxk_conv2': f'{OREPA}.pointwise_kxk.weight',
    'rbr_dense.weight_rbr_gconv_dw': f'{OREPA}.separable.depthwise',
    'rbr_dense.weight_rbr_gconv_pw': f'{OREPA}.separable.pointwise',
}
CONSTANTS = ('weight_rbr_avg_avg', 'id_tensor', 'weight_rbr_prior')


def tensors(case: str, kind: str) -> dict[str, torch.Tensor]:
    """The released tensors of a case under our names."""
    found = {}
    for key in FIXTURES.files:
        if not key.startswith(f'{case}/{kind}/'):
            continue
        name = key.removeprefix(f'{case}/{kind}/')
        value = torch.from_numpy(FIXTURES[key])
        if name.endswith('vector'):
            # The identity term of a RepVGG block has a row that nothing reads.
            found.update(zip(SCALES, value))
        elif not name.endswith(CONSTANTS):
            fits = [
                old for old in NAMES if name == old or (old[-1] == '.' and name.startswith(old))
            ]
            old = max(fits, key=len)
            if name.endswith('gconv_dw'):
                value = filters_first(value)
            elif name.endswith('gconv_pw'):
                value = shares_first(value)
            elif name.endswith(('origin', 'kxk_conv2')):
                value = as_rows(value)
            found[NAMES[old] + name.removeprefix(old)] = value
    return found


@pytest.mark.parametrize('case', CASES)
def test_block(case):
    kind, geometry = CASES[case]
    block = kind(**{**dict(in_channels=4, kernel_size=3, padding=1), **geometry}).double()
    missing = block.load_state_dict(tensors(case, 'state'), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith('num_batches_tracked') for key in missing.missing_keys)

    x = torch.from_numpy(FIXTURES[f'{case}/x'])

    def difference(found, expected):
        return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()

    expected = torch.from_numpy(FIXTURES[f'{case}/eval'])
    assert difference(block.eval()(x), expected) < RELEASED
    assert difference(copy.deepcopy(block).switch_to_deploy()(x), expected) < RELEASED
    out = block.train()(x)
    assert difference(out, torch.from_numpy(FIXTURES[f'{case}/train'])) < RELEASED

    (out**3).sum().backward()
    gradients = tensors(case, 'grad')
    parameters = dict(block.named_parameters())
    assert parameters.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        gap = (parameters[name].grad - gradient).abs().max()
        # Weights in front of a norm that sees few numbers have tiny gradients.
        assert gap < RELEASED * max(gradient.abs().max(), 1e-3 * largest), name
