# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The picture of quantization levels; see ``toy_regression.py``."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tools.analysis_tools.toy.style import (
    COLOURS,
    LLAQ,
    LOSS,
    NAMES,
    UNIFORM,
    verdict,
)


def levels(found: dict) -> Figure:
    """Fig. 7: levels of LLAQ and of a uniform quantizer."""
    part, bits = found['example'], found['settings']['bits']
    fig, axes = plt.subplots(2, 2, figsize=(11, 6.6))
    w = np.asarray(part['weights'])
    limit = 1.05 * max(np.abs(w).max(), np.abs(part['uniform_levels']).max())
    bins = np.linspace(-limit, limit, 81)
    panels = (
        (axes[0, 0], 'uniform', UNIFORM, 'uniform, least weight MSE'),
        (axes[0, 1], 'llaq', LLAQ, 'LLAQ'),
    )
    for ax, kind, colour, name in panels:
        ax.hist(w, bins, color=COLOURS['regression'], alpha=0.6)
        for i, level in enumerate(part[f'{kind}_levels']):
            label = 'levels' if i == 0 else None
            ax.axvline(level, color=colour, lw=1.1, label=label)
        error = np.median(
            found['regression']['llaq'][f'{kind}_{bits}']['relative_mse']
        )
        ax.set(
            xlabel='weight',
            ylabel='weights a bin',
            title=f'{name}, {bits} bits:\nmedian error '
            f'{100 * error:.2f} % of the mean square',
        )
        ax.legend(loc='upper right', frameon=True, framealpha=1)
    ax = axes[1, 0]
    psi = np.asarray(part['psi'])
    low = part['psi_levels'][0] - 4.0
    ax.hist(
        psi.clip(low, None),
        np.linspace(low, part['psi_levels'][-1] + 1, 61),
        color=COLOURS['regression'],
        alpha=0.6,
    )
    for level in part['psi_levels']:
        ax.axvline(level, color=LLAQ, lw=1.1)
    distance = found['findings']['log_space']['numbers']
    ax.set(
        xlabel='ψ(w) = k log₂ w + a of the weights above 0, in codes\n'
        '(left of the first level: becomes 0; first bin: all below)',
        ylabel='weights a bin',
        title='median distance to uniform: after ψ '
        f'{distance["log"]:.2f}, before {distance["linear"]:.2f}',
    )
    ax = axes[1, 1]
    numbers = found['findings']['llaq']['numbers']
    widths = found['settings']['widths']
    for task in COLOURS:
        y = [numbers[f'{task}.{b}.weight_mse_ratio'] for b in widths]
        label = f'{NAMES[task]}, weight MSE'
        ax.plot(widths, y, color=COLOURS[task], marker='o', label=label)
        y = [numbers[f'{task}.{b}.test_loss_quartiles'] for b in widths]
        low, middle, high = np.asarray(y).T
        # side by side, so that the bars do not hide each other
        at = np.asarray(widths) + (0.03 if task == 'regression' else -0.03)
        ax.errorbar(
            at,
            middle,
            (middle - low, high - middle),
            ls='--',
            marker='s',
            capsize=3,
            color=COLOURS[task],
            label=f'{NAMES[task]}, test loss',
        )
    ax.axhline(1, color=LOSS, lw=1, ls=':')
    ax.set_xticks(widths)
    ax.set_yscale('log')
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    ax.set_yticks(ticks, [f'{t:g}' for t in ticks])
    ax.minorticks_off()
    ax.set(
        xlabel='bits',
        ylabel='LLAQ over uniform',
        title='below 1: LLAQ is better\n'
        '(median and, for the test loss, quartiles)',
    )
    ax.set_ylim(None, 20)
    ax.legend(fontsize=9, loc='upper center', ncol=2)
    fig.suptitle(verdict(found, 'llaq'))
    return fig
