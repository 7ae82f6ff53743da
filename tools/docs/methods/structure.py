# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Methods that change what is computed, or how many bits it gets."""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmdet_ptq.solvers import mean_bits_problem, solve
from tools.docs.make_levels_picture import OTHER, UNIFORM, seeded
from tools.docs.methods.learning import DONE, FLOAT, NOW, box

SIZE = 8
#: column of a weight that is rounded now
COLUMN = 3


def gptq() -> Figure:
    """Columns one after the other; those to come take the error."""
    figure = Figure(figsize=(7.2, 2.6), facecolor='white', layout='tight')
    axes = figure.subplots()
    for i in range(SIZE):
        colour = DONE if i < COLUMN else NOW if i == COLUMN else FLOAT
        for j in range(5):
            axes.add_patch(
                Rectangle((i, j), 0.92, 0.92, fc=colour, ec='black', lw=0.6)
            )
    for i in range(COLUMN + 1, SIZE):
        axes.annotate(
            '',
            (i + 0.45, 5),
            (COLUMN + 0.45, 5),
            arrowprops=dict(
                arrowstyle='->', color='grey', connectionstyle='arc3,rad=-0.5'
            ),
        )
    axes.text(COLUMN / 2, -0.2, 'rounded', ha='center', va='top')
    axes.text(COLUMN + 0.45, -0.2, 'now', ha='center', va='top')
    axes.text(
        COLUMN + 1.2,
        -0.2,
        'moved, so that outputs stay as they are',
        va='top',
    )
    axes.text(-0.3, 2.5, 'output\nchannels', ha='right', va='center')
    axes.set_xlim(-2.5, SIZE + 3)
    axes.set_ylim(-1, 7.2)
    axes.set_axis_off()
    return figure


def gptq_attention() -> Figure:
    """Features and positions apart; a softmax before its division."""
    figure = Figure(figsize=(7.2, 2.4), facecolor='white', layout='tight')
    axes = figure.subplots()
    for y, name, colour, bits in (
        (1.5, 'features', NOW, '4 bits'),
        (0.4, 'positions', DONE, '8 bits'),
    ):
        box(axes, 0, y, name, colour)
        box(axes, 1.7, y, 'weight', colour)
        axes.plot([1, 1.7], [y + 0.3] * 2, color='grey', zorder=0)
        axes.plot([2.7, 3.3], [y + 0.3, 1.25], color='grey', zorder=0)
        axes.text(1.35, y + 0.72, bits, ha='center', fontsize=9)
    axes.text(3.45, 1.25, '+', ha='center', va='center', fontsize=14)
    axes.plot([3.6, 4.3], [1.25] * 2, color='grey', zorder=0)
    box(axes, 4.3, 0.95, 'exp', FLOAT)
    box(axes, 6.0, 0.95, '× V', NOW)
    box(axes, 7.7, 0.95, '÷ sum', FLOAT)
    axes.text(5.65, 1.75, '4 bits', ha='center', fontsize=9)
    axes.plot([5.3, 7.7], [1.25] * 2, color='grey', zorder=0)
    axes.text(7.35, 1.75, 'float', ha='center', fontsize=9)
    axes.set_xlim(-0.2, 9)
    axes.set_ylim(0, 2.6)
    axes.set_axis_off()
    return figure


def f_lbq() -> Figure:
    """Bits of groups of channels within a budget, solved exactly."""
    generator = seeded()
    widths = list(range(3, 9))
    sizes = torch.randint(1, 5, (24,), generator=generator).tolist()
    harm = torch.rand(24, generator=generator) ** 2 + 0.02
    # an eighth of a bit less is a quarter of the error
    curves = [[float(h) * 4.0**-b for b in widths] for h in harm]
    figure = Figure(figsize=(7.2, 3.2), facecolor='white', layout='tight')
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    found = solve(mean_bits_problem(sizes, widths, curves, budget=4))
    chosen = [widths[i] for i in found.choice]
    at = 0
    for size, bits, h in zip(sizes, chosen, harm.tolist(), strict=True):
        top.bar(at, h, size * 0.94, align='edge', color=UNIFORM)
        low.bar(at, bits, size * 0.94, align='edge', color=OTHER)
        at += size
    mean = sum(s * b for s, b in zip(sizes, chosen, strict=True)) / at
    low.axhline(4, color='grey', linewidth=1, linestyle=':')
    top.set_ylabel('harm')
    low.set_ylabel('bits')
    low.set_xlabel(
        f'groups of channels, as wide as they are large; {mean:.2f} bits '
        'on average'
    )
    for axes in (top, low):
        axes.spines[['top', 'right']].set_visible(False)
        axes.set_xticks([])
    return figure
