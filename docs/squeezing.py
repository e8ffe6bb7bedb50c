"""Draw docs/squeezing.png: python docs/squeezing.py."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

BRANCHES = (
    ('original', 'k×k'),
    ('average', '1×1, then k×k average'),
    ('prior', '1×1, then k×k frequency prior'),
    ('pointwise_kxk', '1×1, then k×k'),
    ('pointwise', '1×1'),
    ('separable', 'k×k depthwise, then 1×1'),
)
KERNEL, MAP = '#d9e7f5', '#fbe6cf'


def box(ax, x, y, width, height, text, colour):
    """A labelled box."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle='round,pad=0.02,rounding_size=0.08',
            facecolor=colour,
            edgecolor='#444444',
            linewidth=0.9,
        )
    )
    ax.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=9)


def arrow(ax, start, end):
    """An arrow."""
    ax.annotate('', end, start, arrowprops=dict(arrowstyle='-|>', color='#444444', linewidth=0.9))


def legend(ax, x, y, colour, text):
    """A colour and what it stands for."""
    box(ax, x, y, 0.5, 0.3, '', colour)
    ax.text(x + 0.7, y + 0.15, text, va='center', fontsize=9)


def main():
    """Draw and save the picture."""
    figure, ax = plt.subplots(figsize=(11, 5.2))
    ax.set(xlim=(-0.1, 15.3), ylim=(-0.3, 6.9))
    ax.axis('off')

    ax.text(
        0,
        6.6,
        'Training: the branches are added up as kernels, not as feature maps',
        fontsize=11,
        weight='bold',
    )
    for i, (name, what) in enumerate(BRANCHES):
        y = 5.5 - 0.75 * i
        box(ax, 0, y, 3.6, 0.46, what, KERNEL)
        box(ax, 4.0, y, 1.7, 0.46, 'scale', KERNEL)
        arrow(ax, (3.62, y + 0.23), (3.98, y + 0.23))
        arrow(ax, (5.72, y + 0.23), (6.58, 3.88))
        ax.text(1.8, y - 0.14, name, ha='center', va='center', fontsize=6.5, color='#777777')
    box(ax, 6.6, 3.6, 0.6, 0.56, '+', KERNEL)
    arrow(ax, (7.22, 3.88), (7.78, 3.88))
    box(ax, 7.8, 3.5, 1.9, 0.76, 'one kernel\n(O, I/g, k, k)', KERNEL)
    arrow(ax, (9.72, 3.88), (10.28, 3.88))
    for i, text in enumerate(('one convolution', 'BatchNorm', 'ReLU')):
        x = 10.3 + (0, 2.2, 3.9)[i]
        box(ax, x, 3.6, (1.9, 1.4, 0.9)[i], 0.56, text, MAP)
    arrow(ax, (12.22, 3.88), (12.48, 3.88))
    arrow(ax, (13.92, 3.88), (14.18, 3.88))
    ax.text(6.6, 5.2, 'squeeze()', fontsize=10, family='monospace')
    ax.text(6.6, 4.85, 'anew in every step, small tensors only', fontsize=8, color='#555555')
    text = 'O output channels, I input channels, g groups'
    ax.text(6.6, 3.1, text, fontsize=8, color='#555555')
    legend(ax, 10.3, 5.75, KERNEL, 'kernels (weights)')
    legend(ax, 10.3, 5.25, MAP, 'layers that run over the feature map')

    ax.text(0, 0.95, 'After training: one of these two', fontsize=11, weight='bold')
    box(ax, 0, 0.1, 4.6, 0.56, 'nn.Conv2d, the same kernel', MAP)
    box(ax, 4.9, 0.1, 1.4, 0.56, 'BatchNorm', MAP)
    box(ax, 6.6, 0.1, 0.8, 0.56, 'ReLU', MAP)
    arrow(ax, (4.62, 0.38), (4.88, 0.38))
    arrow(ax, (6.32, 0.38), (6.58, 0.38))
    ax.text(
        3.6,
        -0.12,
        'plain form: the stock network, BatchNorm kept',
        ha='center',
        va='top',
        fontsize=8,
    )
    box(ax, 8.6, 0.1, 3.9, 0.56, 'nn.Conv2d with bias', MAP)
    box(ax, 12.8, 0.1, 0.8, 0.56, 'ReLU', MAP)
    arrow(ax, (12.52, 0.38), (12.78, 0.38))
    ax.text(
        11.1,
        -0.12,
        'deploy form: BatchNorm folded into the convolution',
        ha='center',
        va='top',
        fontsize=8,
    )

    figure.savefig(Path(__file__).with_suffix('.png'), dpi=150, bbox_inches='tight')


if __name__ == '__main__':
    main()
