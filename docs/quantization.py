"""Print the tables of docs/quantization.md: python docs/quantization.py FOLDER/CONFIG... [--draw].

The folders are those that ``tools/compare.py CONFIG... --out FOLDER`` left, one a config.
``--draw`` draws docs/quantization_ranges_*.png as well.
"""

import argparse
import re
import tempfile
from pathlib import Path
from statistics import mean, median

from mmorepa.deploy.quantization import Settings, quantize
from mmorepa.engine.run import load_config
from mmorepa.lab.analysis import quantization_report
from mmorepa.writing import write_figure

PICTURE = Path(__file__).with_name('quantization_ranges.png')
#: Networks by the beginning of their config's name, and what the picture calls them.
NETWORKS = {
    'resnet18': 'ResNet-18, plain',
    'dbb-resnet18': 'ResNet-18, DBB',
    'orepa-resnet18': 'ResNet-18, OREPA',
    'plain-repvgg-a0': 'RepVGG-A0, plain',
    'repvgg-a0': 'RepVGG-A0, RepVGG',
    'orepa-repvgg-a0': 'RepVGG-A0, OREPA',
}
CALIBRATION = 256


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'runs', nargs='+', type=Path, help='what tools/compare.py wrote for a config'
    )
    parser.add_argument('--draw', action='store_true', help='draw the pictures')
    return parser.parse_args()


def top1(metrics: dict[str, float]) -> float:
    """The metric that is compared."""
    return metrics['accuracy/top1']


def main() -> None:
    """Print the table and draw the pictures."""
    args = parse_args()
    firsts = {}
    print('| network | peak | spread | weight SQNR | float | lost, per channel | per tensor |')
    print('|---|--:|--:|--:|--:|--:|--:|')
    for runs in args.runs:
        (name,) = (name for name in NETWORKS if re.match(f'{name}[_-]', runs.name))
        title = NETWORKS[name]
        found = [look(folder) for folder in sorted(runs.glob('seed*'))]
        firsts[title] = found[0]['report']
        cells = [title]
        for key, digits in [('peak', 1), ('spread', 1)]:
            cells.append(f'{mean(row[key] for row in found):.{digits}f}')
        channel, tensor = (mean(row[key] for row in found) for key in ('channel', 'tensor'))
        cells.append(f'{channel:.1f} / {tensor:.1f}')
        cells.append(f'{mean(row["float"] for row in found):.2f}')
        for key in ('lost per channel', 'lost per tensor'):
            losses = [row[key] for row in found]
            cells.append(f'{mean(losses):.2f} ({min(losses):.2f} to {max(losses):.2f})')
        print(f'| {" | ".join(cells)} |', flush=True)
    if not args.draw:
        return
    for family in ('ResNet-18', 'RepVGG-A0'):
        titles = [
            title for title in NETWORKS.values() if title in firsts and title.startswith(family)
        ]
        picture = PICTURE.with_stem(f'{PICTURE.stem}_{family.split("-")[0].lower()}')
        reports = [firsts[title] for title in titles]
        write_figure(quantization_report.draw_ranges(reports, titles), picture)


def look(folder: Path) -> dict:
    """The numbers of one trained network: its weights, and its accuracy in int8."""
    cfg = load_config(folder / 'deploy.py')
    made = quantization_report.study(cfg, folder / 'deploy.pth', CALIBRATION, evaluate=False)
    convs = [layer for layer in made.found.layers if len(layer.shape) == 4]
    numbers = dict(
        report=made,
        peak=median(layer.peak for layer in convs),
        spread=median(layer.spread for layer in convs),
        channel=median(layer.weight_sqnr for layer in convs),
        tensor=median(layer.tensor_weight_sqnr for layer in convs),
    )
    for per_channel, key in ((True, 'lost per channel'), (False, 'lost per tensor')):
        with tempfile.TemporaryDirectory() as out:
            done = quantize(
                cfg,
                folder / 'deploy.pth',
                Path(out, 'int8.onnx'),
                Settings(per_channel=per_channel),
                CALIBRATION,
                evaluate=True,
            )
        numbers['float'], after = map(top1, done.metrics)
        numbers[key] = numbers['float'] - after
    return numbers


if __name__ == '__main__':
    main()
