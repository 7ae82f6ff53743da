# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
r"""Draws docs/pictures/allocation.svg: the widths that solvers choose.

From runs of ``f_lbq_dp`` and ``f_lbq_lg``, after which the picture is as
Figure 1 of F-LBQ's supplement::

    python -m tools.accuracy.benchmark_accuracy allocated --bits w4a4 \
        --only mask-rcnn_swin
    python -m tools.docs.make_allocation_picture WORK_DIR_DP WORK_DIR_LG

It keeps what it draws in docs/results/allocation.json; without work dirs it
draws that again.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path('docs/results/allocation.json')
COLOURS = ('#1f77b4', '#d95f02')


def mean_widths(records: list[dict], weights: bool) -> dict[str, float]:
    """Mean bits of each tensor over its elements, in the order of the run.

    Args:
        records (list[dict]): ``allocation`` of ``ptq_result.json``.
        weights (bool): Those of weights, or else those of inputs.

    Returns:
        dict[str, float]: By the name of its first layer, with the port
        behind it where it is none of a weight.
    """
    bits: dict[str, float] = {}
    count: dict[str, int] = {}
    for one in records:
        if (one['tensor'] == 'weight') is not weights:
            continue
        name = one['layers'][0] + ('' if weights else f'.{one["tensor"]}')
        bits[name] = bits.get(name, 0) + one['bits'] * one['elements']
        count[name] = count.get(name, 0) + one['elements']
    return {name: bits[name] / count[name] for name in bits}


def read(folder: Path) -> dict:
    """What is drawn of a run.

    Args:
        folder (Path): Its work dir.

    Returns:
        dict: ``recipe``, ``weights`` and ``inputs``.

    Raises:
        ValueError: If nothing was allocated there.
    """
    found = json.loads((folder / 'ptq_result.json').read_text())
    if not found['allocation']:
        raise ValueError(
            f'{folder}: no bits were allocated in this run; give the work dir '
            'of a recipe with AllocateBits, such as f_lbq_dp'
        )
    return dict(
        recipe=found['recipe'],
        weights=mean_widths(found['allocation'], True),
        inputs=mean_widths(found['allocation'], False),
    )


def _draw(axes: Axes, runs: list[dict], kind: str) -> None:
    names = list(runs[0][kind])
    for run, colour in zip(runs, COLOURS, strict=False):
        values = [run[kind].get(name) for name in names]
        axes.step(
            range(len(names)),
            values,
            where='mid',
            label=run['recipe'],
            color=colour,
            linewidth=1.4,
        )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(2, 8.4)
    axes.set_ylabel('mean bits')
    axes.set_title(f'{kind}, in the order they are used', loc='left', size=10)
    axes.spines[['top', 'right']].set_visible(False)


def draw(runs: list[dict], path: Path) -> None:
    """Writes the picture.

    Args:
        runs (list[dict]): Of :func:`read`, two at most.
        path (Path): Of an SVG.
    """
    salt = {'svg.hashsalt': 'allocation', 'svg.fonttype': 'none'}
    with mpl.rc_context(salt):
        figure = Figure((8, 4.6), layout='constrained')
        above, below = figure.subplots(2)
        _draw(above, runs, 'weights')
        _draw(below, runs, 'inputs')
        above.legend(frameon=False, ncols=2, loc='upper right')
        below.set_xlabel('tensors of the backbone, the first on the left')
        figure.savefig(path, metadata=dict(Date=None))


def main(words: list[str] | None = None) -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('runs', type=Path, nargs='*', metavar='WORK_DIR')
    parser.add_argument(
        '--out', type=Path, default='docs/pictures/allocation.svg'
    )
    args = parser.parse_args(words)
    if args.runs:
        kept = [read(folder) for folder in args.runs]
        RESULTS.write_text(json.dumps(kept, indent=1) + '\n')
    draw(json.loads(RESULTS.read_text()), args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
