# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Draws docs/pictures/sensitivity.svg and auto.svg from docs/results.

``--sensitivity WORK_DIR`` and ``--auto WORK_DIR`` first take what is drawn
from the files of a run.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdet_ptq.engine.auto.run import FILE as AUTO
from mmdet_ptq.engine.sensitivity import FILE as SENSITIVITY
from mmdet_ptq.engine.sensitivity_outputs import rows_of
from mmdet_ptq.report.auto import front

RESULTS = Path('docs/results')
PICTURES = Path('docs/pictures')
SHOWN = 12
MEASURED = ('parts', 'scores', 'layers', 'check', 'suggestion', 'size')
COLOURS = {'uniform': '#7fb2e5', 'gptq': '#1f5fa8'}
OTHER = '#d9730d'


def taken(found: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Parts of the file of a run, without names of images and folders.

    Args:
        found (Mapping): Its content.
        keys (Sequence[str]): Which parts.
    """
    about = dict(title=found['about']['title'])
    return dict(about=about, **{k: found[k] for k in keys if k in found})


def draw_layers(axes: Axes, found: Mapping[str, Any], score: str) -> None:
    """What the worst layers lose alone."""
    rows = [r for r in rows_of(found, score) if not r['role']][:SHOWN]
    for i, row in enumerate(rows):
        values = (row['weight'] or 0.0, row['act'] or 0.0)
        axes.barh(i - 0.2, values[0], 0.38, color='#7fb2e5')
        axes.barh(i + 0.2, values[1], 0.38, color='#1f5fa8')
    axes.barh(0, 0, color='#7fb2e5', label='weights')
    axes.barh(0, 0, color='#1f5fa8', label='inputs')
    axes.set_yticks(range(len(rows)), [r['name'] for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f'{score} score with these alone quantized')
    axes.set_title(found['about']['title'])
    axes.legend(frameon=False, loc='lower right')
    axes.spines[['top', 'right']].set_visible(False)


def draw_trials(axes: Axes, found: Mapping[str, Any]) -> None:
    """AP and operations of what was tried."""
    trials = [t for t in found['trials'].values() if t]
    places = [(t['bops'] / 1e9, t['metric']) for t in trials]
    axes.plot(*zip(*front(places), strict=True), color='#9a9a9a', zorder=1)
    for t, (x, y) in zip(trials, places, strict=True):
        colour = COLOURS.get(t['recipe'], OTHER)
        marker = 'D' if t['rules'] else 'o'
        axes.scatter(x, y, color=colour, marker=marker, zorder=2)
        text = 'mixed' if t['rules'] else t['bits']
        axes.annotate(text, (x, y), (4, -10), textcoords='offset points')
    for recipe in dict.fromkeys(t['recipe'] for t in trials):
        axes.scatter([], [], color=COLOURS.get(recipe, OTHER), label=recipe)
    axes.axhline(found['float']['value'], color='#444444', linestyle='--')
    axes.set_xscale('log')
    axes.set_xlabel('G bit operations')
    axes.set_ylabel('AP on images held out')
    axes.set_title(found['about']['title'])
    axes.legend(frameon=False, loc='lower right')
    axes.spines[['top', 'right']].set_visible(False)


def main(argv: Sequence[str] | None = None) -> int:
    """Takes results over, if asked to, and draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sensitivity', metavar='WORK_DIR')
    parser.add_argument('--auto', metavar='WORK_DIR')
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--pictures', type=Path, default=PICTURES)
    args = parser.parse_args(argv)
    kinds = (
        (SENSITIVITY, args.sensitivity, MEASURED),
        (AUTO, args.auto, ('trials', 'float', 'whole')),
    )
    for name, work, keys in kinds:
        if work is not None:
            found = json.loads((Path(work) / name).read_text())
            text = json.dumps(taken(found, keys), indent=1)
            (args.results / name).write_text(f'{text}\n')
    mpl.rcParams['svg.hashsalt'] = 'sensitivity'
    for name, *_ in kinds:
        found = json.loads((args.results / name).read_text())
        figure = Figure(figsize=(8, 4.4), facecolor='white', layout='tight')
        axes = figure.subplots()
        if name == SENSITIVITY:
            draw_layers(axes, found, 'output')
        else:
            draw_trials(axes, found)
        path = (args.pictures / name).with_suffix('.svg')
        figure.savefig(path, metadata={'Date': None})
    return 0


if __name__ == '__main__':
    sys.exit(main())
