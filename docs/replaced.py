"""Draw docs/replaced.png: python docs/replaced.py."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from squeezing import KERNEL, arrow, box, legend

PLAIN = '#f2f2f2'


def column(ax, x, title, convs, shortcut=None):
    """A stem or a residual block, from top to bottom.

    Args:
        ax (Axes): Where to draw.
        x (float): The middle of the column.
        title (str): What stands above it.
        convs (Sequence[str]): What each convolution is called.
        shortcut (tuple[str, str], optional): The shortcut's convolution and its colour.
    """
    ax.text(x, 6.6, title, ha='center', va='top', fontsize=10, weight='bold', linespacing=1.4)
    y = 4.8
    arrow(ax, (x, y + 0.65), (x, y + 0.02))
    for i, conv in enumerate(convs):
        if i:
            arrow(ax, (x, y + 0.38), (x, y + 0.02))
        box(ax, x - 0.95, y - 0.5, 1.9, 0.5, conv, KERNEL)
        y -= 0.9
    if shortcut is None:
        return
    low = 1.55
    arrow(ax, (x, y + 0.38), (x, low + 0.32))
    box(ax, x - 0.3, low - 0.2, 0.6, 0.5, '+', 'white')
    side = x + 2.35
    ax.plot([x, side], [5.15, 5.15], color='#444444', linewidth=0.9)
    middle = 3.65
    arrow(ax, (side, 5.15), (side, middle + 0.27))
    box(ax, side - 0.95, middle - 0.25, 1.9, 0.5, shortcut[0], shortcut[1])
    ax.plot([side, side], [middle - 0.27, low + 0.05], color='#444444', linewidth=0.9)
    arrow(ax, (side, low + 0.05), (x + 0.32, low + 0.05))
    ax.text(side, middle - 0.4, 'shortcut, where\nthe shape changes', **SMALL)


SMALL = dict(
    ha='center',
    va='top',
    fontsize=7,
    color='#555555',
    bbox=dict(facecolor='white', edgecolor='none', pad=1),
)


def main():
    """Draw and save the picture."""
    figure, ax = plt.subplots(figsize=(11, 4.4))
    ax.set(xlim=(-0.2, 15.2), ylim=(0.2, 6.8))
    ax.axis('off')
    column(ax, 1.2, 'stem', ['conv1, 7×7'])
    ax.text(1.2, 4.15, 'a deep linear stem:\nthree 3×3 kernels\ncomposed into one', **SMALL)
    column(
        ax,
        4.6,
        'basic block\nResNet-18, -34',
        ['conv1, 3×3', 'conv2, 3×3'],
        ('1×1', PLAIN),
    )
    column(
        ax,
        10.6,
        'bottleneck\nResNet-50, -101, -152, ResNeXt',
        ['conv1, 1×1', 'conv2, 3×3', 'conv3, 1×1'],
        ('1×1', KERNEL),
    )
    legend(ax, 0.2, 0.4, KERNEL, 'becomes an OREPA block')
    legend(ax, 4.6, 0.4, PLAIN, 'stays a plain convolution')
    text = 'BatchNorms and ReLUs, not drawn, stay where they are'
    ax.text(9.2, 0.55, text, va='center', fontsize=9, color='#555555')
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=110, bbox_inches='tight')


if __name__ == '__main__':
    main()
