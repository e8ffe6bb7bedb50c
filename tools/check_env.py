"""Show what the parts of mmorepa need, what is installed, and how to mend what is missing.

Example: python tools/check_env.py det

Exit status: 1 where a part that was named, or torch itself, cannot work, else 0.
"""

import argparse
import platform
import runpy
import sys
from pathlib import Path

HEADINGS = ('part', 'module', 'found', 'wanted', 'state')


def load_environment():
    """The names of mmorepa/environment.py, also where mmorepa or torch cannot be imported."""
    here = Path(__file__).resolve().parent
    # Beside the tools in a checkout, two folders up in an installed package (.mim/tools).
    files = [here.parent / 'mmorepa' / 'environment.py', here.parents[1] / 'environment.py']
    return runpy.run_path(str(next(file for file in files if file.is_file())))


def describe_torch():
    """What torch can use, in one line, and whether it can be imported."""
    try:
        import torch
    except Exception as error:  # a broken torch raises what it likes
        return f'none that imports ({type(error).__name__}: {error})', False
    if not torch.cuda.is_available():
        return f'{torch.__version__}, no CUDA device', True
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f'{torch.__version__}, CUDA {torch.version.cuda}: {", ".join(names)}', True


def show(table):
    """Print rows of text below ``HEADINGS``: with rich where it is there, else with spaces."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in [HEADINGS, *table]) for i in range(len(HEADINGS))]
        for row in [HEADINGS, *table]:
            print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        return
    grid = Table(*HEADINGS)
    for row in table:
        grid.add_row(*row)
    Console().print(grid, markup=False)


def main(argv=None):
    """Run the command; give its exit status."""
    environment = load_environment()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        help=f'parts that have to work, of: {", ".join(environment["PARTS"])} (all are shown)',
    )
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in environment['PARTS']:
            parser.error(f'no part {part!r}, choose of: {", ".join(environment["PARTS"])}')

    rows = [(part, row) for part in environment['PARTS'] for row in environment['inspect'](part)]
    torch, imports = describe_torch()
    print(f'Python {platform.python_version()} at {sys.executable}')
    print(f'torch {torch}')
    show([(part, *row[:3], 'to mend' if row.mend else 'ok') for part, row in rows])
    # A need that several parts share is mended once.
    for mend in dict.fromkeys(row.mend for _, row in rows if row.mend):
        parts = dict.fromkeys(part for part, row in rows if row.mend == mend)
        print(f'for {", ".join(parts)}: {mend}')

    broken = {part for part, row in rows if row.mend} | (set() if imports else {'core'})
    stopping = [part for part in ['core', *args.parts] if part in broken]
    if stopping:
        print(f'cannot work: {", ".join(dict.fromkeys(stopping))}', file=sys.stderr)
    return 1 if stopping else 0


if __name__ == '__main__':
    sys.exit(main())
