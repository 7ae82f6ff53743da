# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Makes the report of one run again, or of several side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.environment import tolerate
from ..errors import PTQError
from ..report import PAGE, write_report


def parse_args(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Reads the command line; see :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument(
        'work_dirs',
        nargs='+',
        metavar='WORK_DIR',
        help='work dir of a run of mmdet-ptq quantize, with ptq_result.json',
    )
    parser.add_argument(
        '--out',
        help=f'file to write; default: {PAGE} in the work dir, of several '
        f'runs {PAGE} in the current folder',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
        argv (Sequence[str], optional): Its arguments. Defaults to those of
            the process.
        prog (str, optional): What it is called in its help.
    """
    tolerate(sys.stdout, sys.stderr)
    args = parse_args(argv, prog)
    several = len(args.work_dirs) > 1
    folder = Path('.') if several else Path(args.work_dirs[0])
    path = Path(args.out) if args.out else folder / PAGE
    try:
        if path.suffix.lower() not in ('.html', '.htm'):
            raise PTQError(
                f'--out {path}: the report is a page; give a file that ends '
                'in .html'
            )
        problems = write_report(args.work_dirs, path)
    except PTQError as error:
        print(f'\nerror: {error}', file=sys.stderr)
        return 1
    for problem in problems:
        print(f'warning: {problem}', file=sys.stderr)
    print(f'{path} written')
    return 0
