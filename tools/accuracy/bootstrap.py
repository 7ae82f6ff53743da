# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Whether two methods differ by more than the choice of images explains.

Validation images are drawn with replacement, the same ones for both methods,
and box AP (0.50:0.95) is computed of each drawing: of 95 % of the drawings
the difference lies within the interval that is printed (a paired bootstrap)::

    python -m tools.accuracy.benchmark_accuracy compensated --bits w4a8
    python -m tools.accuracy.bootstrap compensated gptq qdrop --bits w4a8

reads the predictions that the first command has left in its work dir.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from mmdet_ptq.report.bootstrap import PerImage, coco_of, interval, per_image
from tools.accuracy.cells import folder_of
from tools.accuracy.suites import ROOT, SUITES, files_of

PREDICTIONS = 'predictions.bbox.json'


def read(annotations: Path, predictions: Path) -> PerImage:
    """Predictions of a cell, matched with the validation images.

    Args:
        annotations (Path): Of the validation images.
        predictions (Path): Boxes in COCO's result format.
    """
    truth = coco_of(json.loads(annotations.read_text()))
    return per_image(truth, json.loads(predictions.read_text()))['all']


def compared(args: argparse.Namespace) -> list[str]:
    """A line of the table for each detector, printed when it is known.

    Args:
        args (argparse.Namespace): Of :func:`main`.

    Returns:
        list[str]: Of the detectors that have predictions of both methods.
    """
    work = Path(args.work_dir) / args.suite
    rows = []
    for name in dict.fromkeys(c[0] for c in SUITES[args.suite]):
        both = []
        for method in (args.method, args.other):
            folder = folder_of((name, method, args.bits, 0), work)
            if not (folder / PREDICTIONS).is_file():
                break
            both.append(read(files_of(name)['val'], folder / PREDICTIONS))
        if len(both) < 2:
            print(f'{name}: no predictions of {method} in {work}')
            continue
        found = interval(*both, args.drawings, args.seed)
        one, other = (x.ap(np.ones(x.images)) for x in both)
        rows.append(
            f'| {name} | {one:.3f} | {other:.3f} | {found[0]:+.3f} '
            f'| {found[1]:+.3f} to {found[2]:+.3f} |'
        )
        print(rows[-1], flush=True)
    return rows


def write_page(args: argparse.Namespace, rows: list[str]) -> None:
    """Writes the table, and the command that made it.

    Args:
        args (argparse.Namespace): Of :func:`main`.
        rows (list[str]): From :func:`compared`.
    """
    lines = [
        f'| detector | {args.method} | {args.other} | difference | 95 % |',
        '|---|---|---|---|---|',
        *rows,
    ]
    path = Path(args.out) / (
        f'{args.suite}_{args.bits}_{args.method}_{args.other}.md'
    )
    command = (
        f'python -m tools.accuracy.bootstrap {args.suite} {args.method} '
        f'{args.other} --bits {args.bits}'
    )
    path.write_text(
        f'# {args.method} against {args.other} at {args.bits}\n\n'
        'Box AP (0.50:0.95) on the validation images, and in which interval '
        f'95 % of the differences lie if images are drawn {args.drawings} '
        f'times with replacement. Made by `{command}`.\n\n'
        + '\n'.join(lines)
        + '\n'
    )


def main(words: list[str] | None = None) -> int:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('suite', choices=SUITES)
    parser.add_argument('method', help='asked about')
    parser.add_argument('other', help='compared with')
    parser.add_argument('--bits', default='w4a8')
    parser.add_argument('--drawings', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--work-dir', default=str(ROOT / 'work_dirs' / 'accuracy')
    )
    parser.add_argument('--out', default=str(ROOT / 'docs' / 'results'))
    args = parser.parse_args(words)
    rows = compared(args)
    if not rows:
        parser.error('nothing to compare: run benchmark_accuracy first')
    write_page(args, rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
