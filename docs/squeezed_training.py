"""Draw docs/squeezed_training.png: python docs/squeezed_training.py."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from squeezing import KERNEL, MAP, arrow, box, legend

OWNED = '#e3f1dc'
RANKS = ((0.2, 'process 0', '₁'), (8.0, 'process 1', '₂'))


def main():
    """Draw and save the picture."""
    figure, ax = plt.subplots(figsize=(11, 6.6))
    ax.set(xlim=(-0.1, 15.5), ylim=(-0.4, 9.1))
    ax.axis('off')
    text = 'θ₁, θ₂: branches of block 1 and 2     K = K(θ): the kernel they give     J = dK/dθ'
    ax.text(0.2, 8.15, text, fontsize=9)
    legend(ax, 0.2, 8.55, MAP, 'runs over the images')
    legend(ax, 4.4, 8.55, KERNEL, 'kernels and their gradients')
    legend(ax, 9.4, 8.55, OWNED, "optimizer's step, shared out")
    for x, name, own in RANKS:
        ax.text(x, 7.25, name, fontsize=11, weight='bold')
        box(ax, x, 5.9, 1.6, 0.7, 'images', MAP)
        box(ax, x + 2.4, 5.9, 2.6, 0.7, 'forward, loss\nbackward', MAP)
        box(ax, x + 2.4, 4.5, 1.2, 0.6, 'K₁', KERNEL)
        box(ax, x + 3.8, 4.5, 1.2, 0.6, 'K₂', KERNEL)
        arrow(ax, (x + 1.62, 6.25), (x + 2.38, 6.25))
        arrow(ax, (x + 3.0, 5.12), (x + 3.3, 5.88))
        arrow(ax, (x + 4.4, 5.12), (x + 4.1, 5.88))
        # The optimizer's step, of what the process owns.
        box(ax, x, 1.9, 2.1, 0.7, f'pull back\ndL/dθ{own} = J(θ{own})ᵀ G{own}', OWNED)
        box(ax, x + 2.5, 1.9, 1.5, 0.7, f'step θ{own}', OWNED)
        box(ax, x + 4.4, 1.9, 2.1, 0.7, f'generate\nK{own} = K(θ{own})', OWNED)
        arrow(ax, (x + 2.12, 2.25), (x + 2.48, 2.25))
        arrow(ax, (x + 4.02, 2.25), (x + 4.38, 2.25))
        # Past the kernels, from the backward pass.
        ax.plot([x + 5.02, x + 5.6, x + 5.6], [6.25, 6.25, 4.2], color='#444', lw=1)
        arrow(ax, (x + 5.6, 4.3), (x + 5.6, 3.92))
        arrow(ax, (x + 1.05, 3.28), (x + 1.05, 2.62))
        ax.text(x + 3.25, 1.5, f'this process updates θ{own} only', ha='center', fontsize=8)
    text = 'G = dL/dK: the gradients of the plain network, averaged over the processes by DDP'
    box(ax, 0.2, 3.3, 14.3, 0.6, text, KERNEL)
    for x, _, _ in RANKS:
        arrow(ax, (x + 5.45, 1.88), (x + 5.45, 0.72))
    text = 'each process sends its kernels to the others, and the next step runs on them: '
    text += 'K₁ from process 0, K₂ from process 1'
    box(ax, 0.2, 0.1, 14.3, 0.6, text, KERNEL)
    path = Path(__file__).with_name('squeezed_training.png')
    figure.savefig(path, dpi=110, bbox_inches='tight')
    print(f'wrote {path.name}')


if __name__ == '__main__':
    main()
