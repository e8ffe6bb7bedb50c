"""The RepVGG networks that have a name: depths, widths and groups.

Ding, Zhang, Ma, Han, Ding, Sun, "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, tables
2 and 3; with SE layers: D2se of the code that the authors released later.
"""

from __future__ import annotations


def _settings(
    num_blocks: tuple, a: float, b: float, groups: int = 1, se_cfg: dict | None = None
) -> dict:
    """An arch, from the multipliers ``a`` and ``b`` of the paper; every second layer grouped."""
    return dict(
        num_blocks=num_blocks,
        width_factor=(a, a, a, b),
        group_layer_map={layer: groups for layer in range(2, 27, 2)} if groups > 1 else None,
        se_cfg=se_cfg,
    )


_A = (2, 4, 14, 1)
_B = (4, 6, 16, 1)
_D = (8, 14, 24, 1)

#: The networks that have a name.
ARCHS: dict[str, dict] = {
    'A0': _settings(_A, 0.75, 2.5),
    'A1': _settings(_A, 1, 2.5),
    'A2': _settings(_A, 1.5, 2.75),
    'B0': _settings(_B, 1, 2.5),
    'B1': _settings(_B, 2, 4),
    'B1g2': _settings(_B, 2, 4, groups=2),
    'B1g4': _settings(_B, 2, 4, groups=4),
    'B2': _settings(_B, 2.5, 5),
    'B2g2': _settings(_B, 2.5, 5, groups=2),
    'B2g4': _settings(_B, 2.5, 5, groups=4),
    'B3': _settings(_B, 3, 5),
    'B3g2': _settings(_B, 3, 5, groups=2),
    'B3g4': _settings(_B, 3, 5, groups=4),
    'D2se': _settings(_D, 2.5, 5, se_cfg=dict(ratio=16, divisor=1)),
}
