# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the pictures of the toy study share; see ``toy_regression.py``."""

import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = dict(regression='#D55E00', classification='#0072B2')
LOCAL, FISHER, HESSIAN, LOSS = '#777777', '#CC79A7', '#009E73', '#000000'
LLAQ, UNIFORM = '#009E73', '#777777'
NAMES = dict(regression='regressor', classification='classifier')
STYLE = {
    'font.size': 10,
    'axes.titlesize': 10.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'figure.titlesize': 12.5,
    'legend.frameon': False,
    'savefig.dpi': 100,
}


def band(ax: Axes, x: list, rows: list, task: str, **style: object) -> None:
    """Median over networks as a line, quartiles as a band."""
    values = np.asarray(rows)
    low, middle, high = np.percentile(values, [25, 50, 75], axis=1)
    ax.plot(x, middle, color=COLOURS[task], label=NAMES[task], **style)
    ax.fill_between(x, low, high, color=COLOURS[task], alpha=0.2, lw=0)


def verdict(found: dict, claim: str) -> str:
    """The claim, and whether it came out."""
    row = found['findings'][claim]
    word = 'holds here' if row['holds'] else 'does not hold here'
    return f'Claimed: {row["claim"]} – {word}'
