# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Draws docs/pictures/methods/NAME.svg for each method of docs/methods.md."""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl

from tools.docs.methods import PICTURES

#: text stays text, so that files are small
STYLE = {'svg.hashsalt': 'methods', 'svg.fonttype': 'none', 'font.size': 9}


def main() -> int:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/pictures/methods')
    parser.add_argument(
        '--only', nargs='+', choices=PICTURES, default=list(PICTURES)
    )
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name in args.only:
            figure = PICTURES[name]()
            figure.savefig(folder / f'{name}.svg', metadata={'Date': None})
    return 0


if __name__ == '__main__':
    sys.exit(main())
