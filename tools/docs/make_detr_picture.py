# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Draws docs/pictures/detr.svg: what each step brings to DETR at 4 bits.

From ``docs/results/detr.json``, which ``python -m
tools.accuracy.benchmark_accuracy detr`` measures.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.accuracy.transformers import LOOKUP, SPARED

RESULTS = Path('docs/results/detr.json')
BITS = 'w4a4'
#: what a method adds to the one before
STEPS = {
    'uniform': 'plain rounding (uniform)',
    'uniform_scaled': '+ a grid for each input channel',
    'gptq': '+ weights rounded together (gptq)',
    'gptq_split': '+ positional encodings apart',
    'gptq_attention_static': '+ numerator of the softmax',
    'gptq_attention': '+ queries and keys choose grids (gptq_attention)',
    f'{LOOKUP}_unmixed': '+ values at any distance',
    LOOKUP: f'+ mixed heads ({LOOKUP})',
    f'{LOOKUP}_bops': '+ bits where they are needed, as many products',
}
PARTS = {
    'weights': 'all weights',
    'backbone': 'inputs in the backbone',
    'projections': 'inputs of linear layers',
    'products': 'operands of attention products',
    'encoder': 'all inputs in the encoder',
    'decoder': 'all inputs in the decoder',
    'head': 'inputs of the box head',
}


def bars(cells: list[dict]) -> tuple[float, list[list[tuple[str, float]]]]:
    """What is drawn.

    Args:
        cells (list[dict]): Of the suite; a bar whose cell is missing is left
            out.

    Returns:
        tuple: AP of the float detector; labels and AP of the steps, then of
        the last fixed one and of it with single parts in 8 bits.
    """
    found = {
        c['recipe']: c['quantized']
        for c in cells
        if c['bits'] == BITS and c['seed'] == 0
    }
    steps = [(text, found[m]) for m, text in STEPS.items() if m in found]
    spared = [('nothing', LOOKUP)]
    spared += [(PARTS[name], f'{LOOKUP}_{name}_8') for name in SPARED]
    parts = [(text, found[m]) for text, m in spared if m in found]
    return cells[0]['float'], [steps, parts]


def _draw(
    axes: Axes, rows: list[tuple[str, float]], whole: float, title: str
) -> None:
    labels = [label for label, _ in rows]
    values = [value for _, value in rows]
    axes.barh(range(len(rows)), values, color='#7fb2e5')
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    for i, value in enumerate(values):
        text = f'{value:.3f}'.lstrip('0')
        axes.text(value - 0.006, i, text, va='center', ha='right', size=9)
    axes.axvline(whole, color='#444444', linestyle='--', linewidth=1)
    text = f'float\n{whole:.3f}'
    axes.text(whole + 0.004, len(rows) - 1, text, va='center', size=9)
    axes.set_xlim(0, whole + 0.06)
    axes.set_xlabel('box AP')
    axes.set_title(title, loc='left', size=10)
    axes.spines[['top', 'right']].set_visible(False)


def draw(cells: list[dict], path: Path) -> None:
    """Writes the picture.

    Args:
        cells (list[dict]): See :func:`bars`.
        path (Path): Of an SVG.
    """
    whole, groups = bars(cells)
    titles = (
        'DETR at 4 bits: each step on those above it',
        f'{LOOKUP}, with this part in 8 bits',
    )
    with mpl.rc_context({'svg.hashsalt': 'detr', 'svg.fonttype': 'none'}):
        figure = Figure((8, 5.4), layout='constrained')
        for axes, rows, title in zip(
            figure.subplots(2), groups, titles, strict=True
        ):
            _draw(axes, rows, whole, title)
        figure.savefig(path, metadata=dict(Date=None))


def main() -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default='docs/pictures/detr.svg')
    args = parser.parse_args()
    draw(json.loads(RESULTS.read_text()), args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
