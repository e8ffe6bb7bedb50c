"""Put the operators into the environment's mmcv-lite, take them out, say what is there.

Example: python -m mmorepa.ops install
"""

import argparse
import sys

from ..errors import UserError
from . import place

STATES = {
    'compiled': "mmcv's compiled operators are there",
    'mmorepa': 'operators of mmorepa are there, written by install',
    'other': 'an _ext.py is there that mmorepa did not write',
    'nothing': 'no operators are there; importing mmorepa.det or mmorepa.seg provides them',
}


def main() -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(prog='python -m mmorepa.ops', description=__doc__)
    parser.add_argument('what', choices=['install', 'uninstall', 'status'])
    what = parser.parse_args().what
    try:
        if what == 'install':
            print(f'{place.install()} is written')
        elif what == 'uninstall':
            print('removed' if place.uninstall() else 'nothing to remove')
        else:
            print(STATES[place.state()])
    except (UserError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
