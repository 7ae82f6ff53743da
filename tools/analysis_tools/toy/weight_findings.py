# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Verdicts on weights and LLAQ; see ``findings.py``."""

import numpy as np


def median(values: object) -> float:
    """Median of nested lists."""
    return float(np.median(np.asarray(values, dtype=float)))


def distribution(regressor: dict, other: dict) -> tuple[dict, dict]:
    """Observation 3: shape of the distribution, and truncation."""
    numbers = dict(
        initial=median(regressor['kurtosis'][0] + other['kurtosis'][0]),
        regression=median(regressor['kurtosis'][-1]),
        classification=median(other['kurtosis'][-1]),
        moved_regression=median(regressor['moved']),
        moved_classification=median(other['moved']),
    )
    first = dict(
        claim='Weights of the classifier are near uniform, those of the '
        'regressor gather in the middle',
        rule='median excess kurtosis below -0.6 (nearer to uniform, -1.2, '
        'than to Gaussian, 0) for the classifier, above for the regressor',
        holds=numbers['classification'] < -0.6 < numbers['regression'],
        numbers=numbers,
        text=f'excess kurtosis {numbers["regression"]:.2f} regressor, '
        f'{numbers["classification"]:.2f} classifier, '
        f'{numbers["initial"]:.2f} before training; trained weights are '
        f'{numbers["moved_regression"]:.2f} and '
        f'{numbers["moved_classification"]:.2f} norms away from the '
        'initial ones',
    )
    shares = median(regressor['clipped']), median(other['clipped'])
    second = dict(
        claim='Least weight error at 4 bits truncates many weights of the '
        'regressor',
        rule='over 5 % of them, and more than in the classifier',
        holds=shares[0] > 0.05 and shares[0] > shares[1],
        numbers=dict(regression=shares[0], classification=shares[1]),
        text=f'{100 * shares[0]:.1f} % of the weights, classifier '
        f'{100 * shares[1]:.1f} %',
    )
    return first, second


def llaq(regressor: dict, other: dict, widths: list[int]) -> tuple[dict, dict]:
    """Fig. 7, and whether the quantizer gains by it."""
    d, top = regressor['distance'], max(widths)
    numbers = dict(
        linear=median(d['linear']),
        log=median(d['log']),
        entropy_uniform=median(regressor[f'uniform_{top}']['entropy']),
        entropy_llaq=median(regressor[f'llaq_{top}']['entropy']),
    )
    first = dict(
        claim='The logarithm makes the weights of the regressor more uniform',
        rule='Kolmogorov distance to a uniform density is smaller after psi',
        holds=numbers['log'] < numbers['linear'],
        numbers=numbers,
        text=f'distance {numbers["log"]:.2f} after psi, '
        f'{numbers["linear"]:.2f} before; entropy of the codes '
        f'{numbers["entropy_llaq"]:.2f} LLAQ, '
        f'{numbers["entropy_uniform"]:.2f} uniform (1: all used alike)',
    )
    numbers, parts, lower = {}, [], []
    for name, found in dict(
        regression=regressor, classification=other
    ).items():
        for bits in widths:
            a, b = (found[f'{q}_{bits}'] for q in ('llaq', 'uniform'))
            error = np.asarray(a['relative_mse']) / b['relative_mse']
            loss = np.asarray(a['test_loss']) / b['test_loss']
            key = f'{name}.{bits}'
            numbers[f'{key}.weight_mse_ratio'] = median(error)
            numbers[f'{key}.test_loss_quartiles'] = np.percentile(
                loss, [25, 50, 75]
            ).tolist()
            numbers[f'{key}.share_lower_test_loss'] = float((loss < 1).mean())
            if name == 'regression':
                parts.append(
                    f'{bits} bits {median(error):.2f}x, {median(loss):.2f}x '
                    f'(lower in {100 * (loss < 1).mean():.0f} % of networks)'
                )
                lower += [median(error), median(loss)]
    second = dict(
        claim='LLAQ represents the regressor better than uniform levels',
        rule='weight error and test loss are lower at every width',
        holds=max(lower) < 1,
        numbers=numbers,
        text='weight error and test MSE over those of uniform levels: '
        + '; '.join(parts),
    )
    return first, second
