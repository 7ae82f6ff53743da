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
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools.accuracy.cells import folder_of
from tools.accuracy.suites import ROOT, SUITES, files_of

PREDICTIONS = 'predictions.bbox.json'


class PerImage:
    """What COCO's matching says of each detection, ready to be weighed.

    Args:
        annotations (Path): Of the validation images.
        predictions (Path): Boxes in COCO's result format.

    Attributes:
        images (int): How many there are.
    """

    def __init__(self, annotations: Path, predictions: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations))
            found = json.loads(predictions.read_text())
            self._eval = COCOeval(truth, _results(truth, found), 'bbox')
            self._eval.evaluate()
        params = self._eval.params
        self.images = len(params.imgIds)
        self._recalls = np.asarray(params.recThrs)
        areas, most = len(params.areaRng), params.maxDets[-1]
        # the first area is all of them
        self._classes = [
            self._of_class(k * areas * self.images, most)
            for k in range(len(params.catIds))
        ]

    def _of_class(self, start: int, most: int) -> tuple[np.ndarray, ...]:
        """Image of each detection and its matches, the surest first."""
        scores, at, hits, passed = [], [], [], []
        truths = np.zeros(self.images)
        for i in range(self.images):
            one = self._eval.evalImgs[start + i]
            if one is None:
                continue
            truths[i] = np.sum(np.asarray(one['gtIgnore']) == 0)
            mine = np.asarray(one['dtScores'][:most])
            scores.append(mine)
            at.append(np.full(len(mine), i))
            hits.append(one['dtMatches'][:, :most] > 0)
            passed.append(one['dtIgnore'][:, :most] == 0)
        if not scores:
            empty = np.zeros((len(self._eval.params.iouThrs), 0), bool)
            return np.zeros(0, int), empty, empty, truths
        order = np.argsort(-np.concatenate(scores), kind='mergesort')
        hits, passed = (np.concatenate(x, 1)[:, order] for x in (hits, passed))
        return (
            np.concatenate(at)[order],
            hits & passed,
            ~hits & passed,
            truths,
        )

    def ap(self, counts: np.ndarray) -> float:
        """Mean over classes and overlaps, as COCO defines it.

        Args:
            counts (np.ndarray): How often each image is there.

        Returns:
            float: AP; NaN if no class has an object.
        """
        found = []
        for at, right, wrong, truths in self._classes:
            total = float(counts @ truths)
            if total == 0:
                continue
            weights = counts[at]
            good = np.cumsum(right * weights, 1)
            bad = np.cumsum(wrong * weights, 1)
            precision = good / np.maximum(good + bad, np.spacing(1))
            # the best precision at this recall or above
            best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            for row, recall in zip(best, good / total, strict=True):
                where = np.searchsorted(recall, self._recalls, 'left')
                inside = where < len(row)
                found.append(row[where[inside]].sum() / len(where))
        return float(np.mean(found)) if found else float('nan')


def _results(truth: COCO, found: list[dict]) -> COCO:
    if found:
        return truth.loadRes(found)
    # which cannot read that nothing was detected
    nothing = COCO()
    nothing.dataset = {**truth.dataset, 'annotations': []}
    nothing.createIndex()
    return nothing


def interval(
    one: PerImage, other: PerImage, drawings: int, seed: int
) -> tuple[float, float, float]:
    """Difference of AP on all images, and where 95 % of drawings lie.

    Args:
        one (PerImage): Of the method that is asked about.
        other (PerImage): Of the one it is compared with, on the same images.
        drawings (int): How many times images are drawn.
        seed (int): Of the drawing.

    Returns:
        tuple[float, float, float]: Difference, lower and upper end.
    """
    rng = np.random.default_rng(seed)
    n = one.images
    everything = np.ones(n)
    differences = []
    for _ in range(drawings):
        counts = np.bincount(rng.integers(0, n, n), minlength=n)
        differences.append(one.ap(counts) - other.ap(counts))
    low, high = np.percentile(differences, (2.5, 97.5))
    return one.ap(everything) - other.ap(everything), low, high


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
            both.append(PerImage(files_of(name)['val'], folder / PREDICTIONS))
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
