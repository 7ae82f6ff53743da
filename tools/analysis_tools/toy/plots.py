# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Pictures of the toy study; see ``toy_regression.py``."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tools.analysis_tools.toy.levels_plot import levels
from tools.analysis_tools.toy.style import (
    COLOURS,
    FISHER,
    HESSIAN,
    LOCAL,
    LOSS,
    NAMES,
    STYLE,
    band,
    verdict,
)


def noise(found: dict) -> Figure:
    """Fig. 2: damage against noise strength."""
    sigmas = found['settings']['sigmas']
    fig, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharex='col')
    columns = (
        ('gaussian', 'Gaussian noise N(0, σ)', 'σ (weight units)'),
        ('uniform', 'uniform noise on [-σ, σ)', 'σ (weight units)'),
        (
            'relative_gaussian',
            'Gaussian, in proportion to weights',
            'σ over root mean square of the tensor',
        ),
    )
    for column, (kind, title, unit) in zip(axes.T, columns, strict=True):
        for task in COLOURS:
            rows = found[task]['noise'][kind]
            for ax, name in zip(
                column, ('normalised_mse', 'skill'), strict=True
            ):
                band(ax, sigmas[1:], rows[name][1:], task, marker='.')
            start = float(np.median(rows['skill'][0]))
            column[1].axhline(start, color=COLOURS[task], lw=0.8, ls=':')
        column[0].set(xscale='log', yscale='log', ylim=(1e-5, 30), title=title)
        column[1].set(xscale='log', ylim=(-0.1, 1.05), xlabel=unit)
        ticks = [0.01, 0.1, 1]
        column[1].set_xticks(ticks, [f'{t:g}' for t in ticks])
    axes[0, 0].set_ylabel('output error: MSE over\noutput variance')
    axes[1, 0].set_ylabel('skill on the test half\n(1 perfect, 0 chance)')
    axes[0, 0].legend(loc='upper left')
    fig.suptitle(verdict(found, 'noise'))
    fig.supxlabel(
        'Skill: R² of the regressor, chance-corrected accuracy of the '
        'classifier; dotted: without noise. Line: median network, '
        'band: quartiles.',
        fontsize=9,
    )
    return fig


def scales(found: dict) -> Figure:
    """Fig. 3: local error and task metric against the scale."""
    ratios, bits = (found['settings'][k] for k in ('ratios', 'bits'))
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.4))
    parts = (
        ('classification', 'test_skill', 'accuracy on the test half', 'max'),
        ('regression', 'test_loss', 'test MSE (log scale)', 'min'),
    )
    for ax, (task, name, label, best) in zip(axes, parts, strict=True):
        curves = found[task]['scales']
        error = np.asarray(curves['weight_mse'][0][0])
        value = np.asarray(curves[name][0][0])
        if task == 'classification':
            value = (1 + 2 * value) / 3
        ax.plot(ratios, error, color=LOCAL, label='weight MSE (left)')
        ax.set(xlabel='clipping range / max |w|', ylabel='weight MSE')
        ax.set_ylim(0, None)
        right = ax.twinx()
        right.grid(False)
        right.spines['right'].set_visible(True)
        right.plot(ratios, value, color=COLOURS[task], label=f'{label} →')
        if task == 'regression':
            right.set_yscale('log')
        else:
            right.set_ylim(0.5, 1.02)
        right.set_ylabel(label, color=COLOURS[task])
        local = int(error.argmin())
        good = value == getattr(value, best)()
        x = np.asarray(ratios)
        ax.axvline(x[local], color=LOCAL, ls='--', lw=1)
        right.plot(
            x[good],
            value[good],
            'o',
            color=COLOURS[task],
            ms=6 if task == 'regression' else 3,
            label='best of all scales',
        )
        lines = ax.get_lines()[:1] + right.get_lines()
        ax.legend(
            lines,
            ['weight MSE', label, 'best of all scales'],
            loc='upper right' if task == 'regression' else 'center right',
        )
        ratio = value[local] / value[good][0]
        ax.set_title(
            f'classifier: accuracy {value[local]:.2f} at the least error, '
            f'best {value[good][0]:.2f}'
            if task == 'classification'
            else f'regressor: {ratio:.0f}x the best MSE at the least error'
        )
    numbers = {
        task: found['findings'][f'local_optimum_{task}']['numbers']
        for task in COLOURS
    }
    share = numbers['classification']['share_best']
    ratio = numbers['regression']['loss_over_best']
    fig.suptitle(
        f'Least weight error: best accuracy in {100 * share:.0f} % of the '
        f'classifier layers, {ratio:.1f}x the best MSE in the regressor '
        '(median)'
    )
    fig.supxlabel(
        f'{bits} bits; shown: one middle layer of the first network; '
        'dashed: scale of least weight error',
        fontsize=9,
    )
    return fig


def weights(found: dict) -> Figure:
    """Fig. 4: weight distributions, and how they come about."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.3))
    for ax, task in zip(axes, COLOURS, strict=False):
        part = found[task]['weights']
        edges, counts = np.asarray(part['edges']), np.asarray(part['counts'])
        density = counts / counts.sum() / np.diff(edges)
        ax.stairs(density, edges, fill=True, alpha=0.6, color=COLOURS[task])
        x = np.linspace(-4, 4, 201)
        gauss = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        ax.plot(x, gauss, color=LOSS, lw=1, ls=':', label='Gaussian')
        edge = 3**0.5
        ax.plot(
            [-4, -edge, -edge, edge, edge, 4],
            [0, 0, 0.5 / edge, 0.5 / edge, 0, 0],
            color=LOSS,
            lw=1,
            label='uniform',
        )
        clip = np.median(part['clip'])
        name = f'{found["settings"]["bits"]}-bit range of least error'
        for side, label in ((-clip, None), (clip, name)):
            ax.plot([side] * 2, [0, 0.45], '--', color='#CC0000', label=label)
        share = 100 * np.median(part['clipped'])
        ax.set(
            xlabel='weight / root mean square of its layer',
            ylabel='density',
            ylim=(0, 0.7),
            title=f'{NAMES[task]}: excess kurtosis '
            f'{np.median(part["kurtosis"][-1]):.2f},\n'
            f'{share:.1f} % beyond the range of least error',
        )
        ax.legend(loc='upper left', fontsize=9)
    for task in COLOURS:
        part = found[task]['weights']
        rows = np.asarray(part['kurtosis'])
        rows = rows.reshape(len(rows), -1)
        band(axes[2], part['steps'], rows, task, marker='.')
    for x, level, name in ((60, -1.2, 'uniform'), (0.1, 0, 'Gaussian')):
        axes[2].axhline(level, color=LOSS, lw=0.8, ls=':')
        axes[2].text(x, level + 0.03, name, fontsize=9)
    axes[2].set_xscale('symlog', linthresh=1)
    axes[2].set_xlim(-0.1, part['steps'][-1] * 1.3)
    axes[2].set(
        xlabel='training step',
        ylabel='excess kurtosis of a layer',
        title='shape during training\n(median and quartiles of layers)',
    )
    axes[2].legend(loc='upper left', bbox_to_anchor=(0, 0.92))
    fig.suptitle(verdict(found, 'weights'))
    return fig


def hessian(found: dict) -> Figure:
    """Fig. 6: second-order metrics against the loss, over scales."""
    ratios = found['settings']['ratios']
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    curves = found['regression']['scales']
    ax = axes[0]
    styles = (
        ('weight_mse', 'weight MSE', LOCAL, ':'),
        ('fisher', 'diagonal Fisher (Eq. 3)', FISHER, '-'),
        ('hessian', 'exact Hessian', HESSIAN, '-'),
        ('train_loss', 'training MSE itself', LOSS, '--'),
    )
    for name, label, colour, style in styles:
        y = np.asarray(curves[name][0][0])
        y = y / y[np.abs(np.asarray(ratios) - 1).argmin()]
        wide = 3.5 if name == 'hessian' else 1.4
        ax.plot(ratios, y, style, color=colour, label=label, lw=wide)
        at = int(y.argmin())
        ax.plot(ratios[at], y[at], 'o', color=colour, ms=7, mec='white')
    ax.set(
        yscale='log',
        xlabel='clipping range / max |w|',
        ylabel='relative to its value at max |w|',
        title='regressor, one layer of the first network\n(dots: least)',
    )
    ax.legend(fontsize=9)
    ax = axes[1]
    numbers = found['findings']['hessian']['numbers']
    names = dict(
        weight_mse='weight MSE',
        output_mse='layer output MSE',
        fisher='diagonal Fisher\n(Eq. 3)',
        output_diagonal='diagonal of the exact\noutput Hessian',
        hessian='exact Hessian',
    )
    for i, task in enumerate(COLOURS):
        y = np.arange(len(names)) + 0.38 * (i - 0.5)
        values = [numbers[f'{task}.{m}.loss_over_best'] for m in names]
        ax.barh(
            y, values, 0.36, left=0, color=COLOURS[task], label=NAMES[task]
        )
        for place, value in zip(y, values, strict=True):
            ax.text(value * 1.05, place, f'{value:.3g}', va='center', size=9)
    ax.set_yticks(range(len(names)), list(names.values()))
    ax.invert_yaxis()
    ax.set(
        xscale='log',
        xlabel='training loss at the chosen scale / best of all scales',
        title='median over networks and middle layers\n(1: best possible)',
    )
    ax.set_xlim(0.8, ax.get_xlim()[1] * 1.6)
    ax.grid(axis='y', visible=False)
    ax.legend(loc='lower right', fontsize=9)
    fig.suptitle(verdict(found, 'hessian'))
    return fig


def draw(found: dict, out: Path) -> list[Path]:
    """Draws all pictures.

    Args:
        found (dict): What ``toy_regression.study`` gave.
        out (Path): Existing folder.

    Returns:
        list[Path]: The PNG files.
    """
    pictures: dict[str, Callable[[dict], Figure]] = dict(
        noise_sensitivity=noise,
        error_against_scale=scales,
        weight_histograms=weights,
        fisher_against_hessian=hessian,
        llaq_levels=levels,
    )
    # also where there is a screen: nothing is shown
    plt.switch_backend('Agg')
    made = []
    with plt.rc_context(STYLE):
        for name, picture in pictures.items():
            fig = picture(found)
            fig.tight_layout()
            made.append(out / f'{name}.png')
            fig.savefig(made[-1])
            plt.close(fig)
    return made
