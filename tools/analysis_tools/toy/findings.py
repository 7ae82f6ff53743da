# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the paper claims against what came out; see ``toy_regression.py``.

Every verdict follows from numbers by the rule that stands beside it.
"""

import numpy as np
from scipy.stats import spearmanr

from tools.analysis_tools.toy.weight_findings import distribution, llaq, median

# Noise strength at which the tasks are compared; one of the strengths.
REFERENCE = 0.1
METRICS = ('weight_mse', 'output_mse', 'fisher', 'output_diagonal', 'hessian')


def half_strength(sigmas: list[float], noise: dict) -> float | None:
    """Strength at which the median network keeps half its skill.

    Args:
        sigmas (list[float]): Strengths, the first 0.
        noise (dict): One kind of noise of ``noise_study``.

    Returns:
        float, optional: Interpolated in the logarithm; the least strength
        if that is too much already; None if the largest is not enough.
    """
    skill = np.median(np.asarray(noise['skill']), axis=1)
    below = np.flatnonzero(skill < skill[0] / 2)
    if len(below) == 0:
        return None
    i = below[0]
    if i == 1:
        return sigmas[1]
    part = (skill[i - 1] - skill[0] / 2) / (skill[i - 1] - skill[i])
    low, high = np.log(sigmas[i - 1]), np.log(sigmas[i])
    return float(np.exp(low + part * (high - low)))


def sensitivity(
    sigmas: list[float], regressor: dict, other: dict
) -> tuple[dict, dict]:
    """Observation 1, first part: as the paper measures it, and unit-free."""
    at = sigmas.index(REFERENCE)
    ratios, halves = {}, {}
    for kind in regressor:
        a, b = regressor[kind], other[kind]
        for name in ('output_mse', 'normalised_mse', 'raw_mse'):
            ratio = median(a[name][at]) / median(b[name][at])
            ratios[f'{kind}.{name}_ratio'] = ratio
        halves[f'{kind}.half_skill_regression'] = half_strength(sigmas, a)
        halves[f'{kind}.half_skill_classification'] = half_strength(sigmas, b)
    kinds = ('gaussian', 'uniform')
    plain = [ratios[f'{kind}.output_mse_ratio'] for kind in kinds]
    first = dict(
        claim='Noise disturbs the regressor more than the classifier',
        rule=f'mean squared change of the output at strength {REFERENCE}, '
        'as the paper measures it: larger for both noises',
        holds=min(plain) > 1,
        numbers={k: v for k, v in ratios.items() if 'relative' not in k},
        text=f'output error at strength {REFERENCE} is {plain[0]:.1f}x '
        f'(Gaussian) and {plain[1]:.1f}x (uniform) that of the classifier',
    )
    fair = [ratios[f'relative_{kind}.normalised_mse_ratio'] for kind in kinds]
    lost = [
        halves[f'relative_gaussian.half_skill_{name}'] or np.inf
        for name in ('regression', 'classification')
    ]
    shown = [
        f'{x:.2f}' if x < np.inf else f'over {sigmas[-1]:g}' for x in lost
    ]
    second = dict(
        claim='The same free of units: noise in proportion to the weights, '
        'error over the variance of the output (not in the paper)',
        rule='larger for both noises, and half of the skill is lost earlier',
        holds=min(fair) > 1 and lost[0] < lost[1],
        numbers={k: v for k, v in ratios.items() if 'relative' in k} | halves,
        text=f'{fair[0]:.1f}x (Gaussian) and {fair[1]:.1f}x (uniform); '
        'without dividing by the variance '
        f'{ratios["relative_gaussian.output_mse_ratio"]:.1f}x and '
        f'{ratios["relative_uniform.output_mse_ratio"]:.1f}x. Half of the '
        f'skill is lost at {shown[0]} (regressor) and {shown[1]} '
        '(classifier) times the size of the weights. Outputs before the '
        f'softmax: {ratios["relative_gaussian.raw_mse_ratio"]:.1f}x',
    )
    return first, second


def gaussian_uniform(sigmas: list[float], regressor: dict) -> dict:
    """Observation 1, second part; holds if the plain ratio > 1."""
    at = sigmas.index(REFERENCE)
    first, second = regressor['gaussian'], regressor['uniform']
    curve = [median(row) for row in second['output_mse']]
    gauss = median(first['output_mse'][at])
    # uniform noise on [-s, s) has the standard deviation s / sqrt(3)
    strength = np.log(REFERENCE * 3**0.5)
    same = np.exp(np.interp(strength, np.log(sigmas[1:]), np.log(curve[1:])))
    numbers = dict(
        same_sigma=curve[at] / gauss, same_deviation=float(same / gauss)
    )
    return dict(
        claim='The regressor is more sensitive to uniform than to Gaussian '
        'noise',
        rule='uniform on [-s, s) moves the output more than N(0, s)',
        holds=numbers['same_sigma'] > 1,
        numbers=numbers,
        text=f'error by uniform noise {numbers["same_sigma"]:.2f}x that by '
        'Gaussian noise at the same s, and '
        f'{numbers["same_deviation"]:.2f}x at the same standard deviation',
    )


def chosen(curves: dict, metric: str, outcome: str, best: str) -> np.ndarray:
    """Outcome where a metric is least, and the best over all candidates.

    Args:
        curves (dict): ``[R][layer][C]`` by name.
        metric (str): What chooses the candidate.
        outcome (str): What is looked at.
        best (str): ``'min'`` or ``'max'``.

    Returns:
        np.ndarray: ``[2, R * layers]``: at the choice, the best.
    """
    score, value = np.asarray(curves[metric]), np.asarray(curves[outcome])
    at = np.take_along_axis(value, score.argmin(-1)[..., None], -1)
    return np.stack([at.ravel(), getattr(value, best)(-1).ravel()])


def local_optimum(regressor: dict, other: dict) -> tuple[dict, dict]:
    """Observation 2 for both tasks."""
    at, best = chosen(regressor, 'weight_mse', 'test_loss', 'min')
    r2, top = chosen(regressor, 'weight_mse', 'test_skill', 'max')
    numbers = dict(
        layers=len(at),
        loss_over_best=median(at / best),
        share_over_1_05=float((at > 1.05 * best).mean()),
        r2_lost=median(top - r2),
    )
    first = dict(
        claim='For the regressor the scale of least local error is not '
        'the best',
        rule='in more than half of the layers the test loss is over 1.05 '
        'of the best',
        holds=numbers['share_over_1_05'] > 0.5,
        numbers=numbers,
        text=f'test MSE {numbers["loss_over_best"]:.1f}x the best (median), '
        f'over 1.05x in {100 * numbers["share_over_1_05"]:.0f} % of '
        f'{len(at)} layers; in R2 a loss of {numbers["r2_lost"]:.4f}',
    )
    skill, top = chosen(other, 'weight_mse', 'test_skill', 'max')
    ce, least = chosen(other, 'weight_mse', 'train_loss', 'min')
    # skill is accuracy corrected for chance: 2/3 of it are accuracy
    numbers = dict(
        layers=len(skill),
        share_best=float((skill >= top - 1e-12).mean()),
        accuracy_lost=float((top - skill).mean() * 2 / 3),
        train_loss_over_best=median(ce / least),
    )
    second = dict(
        claim='For the classifier it gives the best accuracy',
        rule='in more than half of the layers no scale gives a better one',
        holds=numbers['share_best'] > 0.5,
        numbers=numbers,
        text=f'in {100 * numbers["share_best"]:.0f} % of {len(skill)} layers '
        f'no scale is better, {100 * numbers["accuracy_lost"]:.1f} points '
        'of accuracy lost on average; yet its training cross-entropy is '
        f'{numbers["train_loss_over_best"]:.1f}x the best',
    )
    return first, second


def curvature(tasks: dict) -> dict:
    """Fig. 6; holds if H follows the loss and beats Eq. 3."""
    numbers = {}
    for name, curves in tasks.items():
        truth = np.asarray(curves['train_loss'])
        truth = truth.reshape(-1, truth.shape[-1])
        for metric in METRICS:
            rows = np.asarray(curves[metric]).reshape(truth.shape)
            ranks = [
                spearmanr(a, b)[0] for a, b in zip(rows, truth, strict=True)
            ]
            at, best = chosen(curves, metric, 'train_loss', 'min')
            numbers[f'{name}.{metric}.rank_correlation'] = median(ranks)
            numbers[f'{name}.{metric}.loss_over_best'] = median(at / best)
    ranks, losses = (
        {m: numbers[f'regression.{m}.{what}'] for m in METRICS}
        for what in ('rank_correlation', 'loss_over_best')
    )
    return dict(
        claim='The exact Hessian follows the loss of the regressor, the '
        'diagonal Fisher does not',
        rule='rank correlation of the Hessian above 0.95 and loss at its '
        'scale below 1.05 of the best; over 1.05 at the scale of Eq. 3',
        holds=ranks['hessian'] > 0.95
        and losses['hessian'] < 1.05 < losses['fisher'],
        numbers=numbers,
        text='rank correlation with the loss, and loss at the chosen scale '
        f'over the best: Hessian {ranks["hessian"]:.2f}, '
        f'{losses["hessian"]:.2f}x; Fisher (Eq. 3) {ranks["fisher"]:.2f}, '
        f'{losses["fisher"]:.1f}x; diagonal of the exact output Hessian '
        f'{ranks["output_diagonal"]:.2f}, {losses["output_diagonal"]:.1f}x; '
        f'weight MSE {ranks["weight_mse"]:.2f}, {losses["weight_mse"]:.1f}x',
    )


def findings(curves: dict) -> dict:
    """All claims in the paper's order.

    Args:
        curves (dict): What ``toy_regression.study`` measured.

    Returns:
        dict: For each claim ``claim``, ``rule``, ``holds``, ``numbers`` and
        a ``text`` with the main numbers.
    """
    sigmas = curves['settings']['sigmas']
    a, b = curves['regression'], curves['classification']
    noise = sensitivity(sigmas, a['noise'], b['noise'])
    local = local_optimum(a['scales'], b['scales'])
    shape = distribution(a['weights'], b['weights'])
    levels = llaq(a['llaq'], b['llaq'], curves['settings']['widths'])
    return dict(
        noise=noise[0],
        noise_unit_free=noise[1],
        noise_kind=gaussian_uniform(sigmas, a['noise']),
        local_optimum_regression=local[0],
        local_optimum_classification=local[1],
        weights=shape[0],
        truncation=shape[1],
        hessian=curvature(
            dict(regression=a['scales'], classification=b['scales'])
        ),
        log_space=levels[0],
        llaq=levels[1],
    )
