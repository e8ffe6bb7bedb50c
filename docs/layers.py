"""Draws layers.png: the layers of the package, each knowing those below it."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

#: Lowest first: the parts of a layer with what each holds.
LAYERS = [
    {'errors, version, environment, repvgg_archs, named_configs': 'what everybody may need'},
    {
        'convs': 'blocks',
        'datasets': 'digits, Fashion-MNIST',
        'config_files, config_types, writing': 'configs, files',
    },
    {'checkpoints': 'reading safely, telling forms apart, converting', 'ops': "mmcv's operators"},
    {'backbones': "thin subclasses of the libraries' networks; RepVGG"},
    {'pretrain, det, seg, registry': 'one import point a library'},
    {'engine': 'optimizer rules, hooks, running and resuming a training'},
    {'deploy': 'export, then quantization'},
    {'lab': 'benchmark, comparison, analysis; nothing below imports it'},
]
#: Of one layer, lowest first.
CONVS = ['kernels', 'orepa', 'blocks', 'convert']
WIDTH, HEIGHT, GAP = 10.0, 0.78, 0.2
BLUE = '#d6e6f4'


def box(axes, left: float, bottom: float, width: float, title: str, text: str):
    """One part."""
    shape = FancyBboxPatch(
        (left, bottom),
        width,
        HEIGHT,
        boxstyle='round,pad=0,rounding_size=.08',
        fc=BLUE,
        ec='#555',
    )
    axes.add_patch(shape)
    middle = left + width / 2
    axes.text(middle, bottom + 0.54, title, ha='center', va='center', family='monospace', size=10)
    axes.text(middle, bottom + 0.22, text, ha='center', va='center', size=8.5, color='#333333')


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(9, 6.6), layout='constrained', dpi=110)
    axes = figure.subplots()
    for row, layer in enumerate(LAYERS):
        shares = {3: [4.4, 1.9, 3.7], 2: [7.5, 2.5]}.get(len(layer), [1])
        left = 0.0
        for (title, text), share in zip(layer.items(), shares):
            width = WIDTH * share / sum(shares)
            inner = width - (GAP if left + width < WIDTH - 0.01 else 0)
            if title == 'convs':
                text = f'torch only: {" → ".join(CONVS)}'
            box(axes, left, row * (HEIGHT + GAP), inner, title, text)
            left += width
    top = len(LAYERS) * (HEIGHT + GAP)
    axes.annotate(
        '', (-0.45, 0), (-0.45, top - GAP), arrowprops=dict(arrowstyle='-|>', lw=2, color='#555')
    )
    axes.text(-0.75, top / 2, 'imports go down', rotation=90, ha='center', va='center', size=10)
    axes.set_xlim(-1.0, WIDTH + 0.05)
    axes.set_ylim(-0.1, top)
    axes.axis('off')
    return figure


if __name__ == '__main__':
    draw().savefig(Path(__file__).with_suffix('.png'))
