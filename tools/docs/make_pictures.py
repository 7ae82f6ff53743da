# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Draws docs/pictures/overview.svg: what the project does, what it keeps."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tools.docs.make_which_recipe_doc import CONVOLUTIONAL, METRIC, RESULTS

#: recipes drawn: colours of bar and number, and what a reader sees
BARS = {
    'minmax': ('#c9c9c9', 'black', 'minmax (what most tools do)'),
    'uniform': ('#7fb2e5', 'black', 'uniform (seconds)'),
    'reg_ptq': ('#1f5fa8', 'white', 'reg_ptq (minutes)'),
}
WIDTHS = ('w8a8', 'w4a8', 'w4a4', 'w3a3', 'w2a4')
STEPS = (
    ('your detector\nconfig.py\ncheckpoint.pth', '#ffffff'),
    ('survey\none real image\nshows the layers', '#eaf2fb'),
    ('rules\nwhat each tensor\nbecomes', '#eaf2fb'),
    ('passes\nhow the numbers\nare found', '#eaf2fb'),
    ('low-bit model\nquantized.pth, AP\nbefore and after', '#ffffff'),
)


def average_precision(
    cells: Iterable[dict], zoo: Iterable[dict]
) -> tuple[float, dict[tuple[str, str], float]]:
    """Mean AP of the convolutional detectors.

    Args:
        cells (Iterable[dict]): Of ``table1.json``.
        zoo (Iterable[dict]): Of ``zoo.json``.

    Returns:
        tuple: That of the float models, and those by recipe and width, as
        far as all detectors were run.
    """
    found, floats = {}, {}
    for c in zoo:
        key = c['recipe'], c['bits'], c['detector']
        found[key] = c['quantized'][METRIC]
    for c in cells:
        found[c['recipe'], c['bits'], c['detector']] = c['quantized']
        floats[c['detector']] = c['float']
    means = {}
    for key in dict.fromkeys(key[:2] for key in found):
        values = [found.get((*key, d)) for d in CONVOLUTIONAL]
        if None not in values:
            means[key] = mean(values)
    return mean(floats[d] for d in CONVOLUTIONAL), means


def draw_flow(axes: Axes) -> None:
    """The way from a config to a quantized detector."""
    axes.set_xlim(0, len(STEPS))
    axes.set_ylim(0, 1)
    axes.axis('off')
    for i, (text, colour) in enumerate(STEPS):
        axes.add_patch(
            FancyBboxPatch(
                (i + 0.08, 0.12),
                0.76,
                0.76,
                boxstyle='round,pad=0,rounding_size=0.06',
                facecolor=colour,
                edgecolor='#1f5fa8',
            )
        )
        first, _, rest = text.partition('\n')
        axes.text(i + 0.46, 0.66, first, ha='center', weight='bold')
        axes.text(i + 0.46, 0.5, rest, ha='center', va='top', fontsize=9)
        if i:
            axes.annotate(
                '',
                (i + 0.07, 0.5),
                (i - 0.15, 0.5),
                arrowprops=dict(arrowstyle='-|>', color='#1f5fa8'),
            )


def draw_bars(
    axes: Axes, whole: float, means: dict[tuple[str, str], float]
) -> None:
    """AP by width, a bar for each recipe that was run there."""
    for i, width in enumerate(WIDTHS):
        there = [r for r in BARS if (r, width) in means]
        for j, recipe in enumerate(there):
            x = i + 0.26 * (j - (len(there) - 1) / 2)
            value = means[recipe, width]
            colour, ink, _ = BARS[recipe]
            axes.bar(x, value, 0.24, color=colour)
            text = f'{value:.3f}'.lstrip('0')
            axes.text(x, value - 0.04, text, ha='center', size=9, color=ink)
    axes.axhline(whole, color='#444444', linestyle='--', linewidth=1)
    axes.text(
        len(WIDTHS) - 0.45,
        whole,
        f'float\n{whole:.3f}',
        va='center',
        fontsize=9,
    )
    for colour, _, label in BARS.values():
        axes.bar(0, 0, color=colour, label=label)
    axes.set_xticks(
        range(len(WIDTHS)),
        [f'{w[1]}-bit weights,\n{w[3]}-bit activations' for w in WIDTHS],
    )
    axes.set_ylabel('box AP, mean of four detectors')
    axes.set_ylim(0, 0.86)
    axes.legend(ncols=3, frameon=False, loc='upper center')
    axes.spines[['top', 'right']].set_visible(False)


def main() -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/pictures/overview.svg')
    args = parser.parse_args()
    cells = json.loads((RESULTS / 'table1.json').read_text())
    zoo = json.loads((RESULTS / 'zoo.json').read_text())['cells']
    mpl.rcParams['svg.hashsalt'] = 'overview'
    figure = Figure(figsize=(9.6, 5.4), facecolor='white', layout='tight')
    axes = figure.subplots(2, 1, height_ratios=(1, 2.4))
    draw_flow(axes[0])
    draw_bars(axes[1], *average_precision(cells, zoo))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, metadata={'Date': None})
    return 0


if __name__ == '__main__':
    sys.exit(main())
