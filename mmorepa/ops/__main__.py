"""Put the operators into the environment's mmcv-lite, take them out, say what is there.

Example: python -m mmorepa.ops install
"""

import argparse

from .. import cli
from . import place

STATES = {
    'compiled': "mmcv's compiled operators are there",
    'mmorepa': 'operators of mmorepa are there, written by install',
    'other': 'an _ext.py is there that mmorepa did not write',
    'nothing': 'no operators are there; importing mmorepa.det or mmorepa.seg provides them',
}


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(prog='python -m mmorepa.ops', description=__doc__)
    parser.add_argument('what', choices=['install', 'uninstall', 'status'])
    what = parser.parse_args().what
    if what == 'install':
        print(f'{place.install()} is written')
    elif what == 'uninstall':
        print('removed' if place.uninstall() else 'nothing to remove')
    else:
        print(STATES[place.state()])


if __name__ == '__main__':
    cli.run(main)
