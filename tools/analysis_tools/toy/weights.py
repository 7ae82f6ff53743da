# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weight distributions and LLAQ in the toy study; see ``toy_regression.py``.

The middle layers only, as in ``study.scale_study``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet_ptq.quantizers import LLAQuantizer
from tools.analysis_tools.toy.networks import LAYERS, Params, Task, forward
from tools.analysis_tools.toy.study import candidates

# Histogram range, in root mean squares of the layer.
EDGES = torch.linspace(-4, 4, 65, dtype=torch.float64)


def kurtosis(weight: Tensor) -> Tensor:
    """Excess kurtosis over the last two axes.

    -1.2 for a uniform density, 0 for a Gaussian, 3 for a Laplace.

    Args:
        weight (Tensor): ``[..., out, in]``.

    Returns:
        Tensor: ``[...]``.
    """
    d = weight - weight.mean((-1, -2), keepdim=True)
    fourth = d.pow(4).mean((-1, -2))
    return fourth / d.square().mean((-1, -2)).square() - 3


def weight_study(
    kept: dict[int, Params], bits: int, ratios: Sequence[float]
) -> dict:
    """Shape of the weight distribution (Fig. 4 of the paper).

    Args:
        kept (dict[int, list[Tensor]]): Parameters by training step, the
            first and the last among them.
        bits (int): Width at which the clipping range is chosen.
        ratios (Sequence[float]): Clipping ranges over ``max|w|``.

    Returns:
        dict: ``edges`` and ``counts`` of all weights over their layer's
        root mean square (outliers in the end bins); ``clip``, the range of
        least ``weight_mse`` in the same unit, and ``clipped``, the share
        of weights beyond it, ``[layer][R]``; ``moved``, the distance from
        the initial weights over their norm; ``kurtosis`` by step:
        ``steps`` and ``[step][layer][R]``.
    """
    steps = sorted(kept)
    first, last = kept[steps[0]], kept[steps[-1]]
    counts = torch.zeros(len(EDGES) - 1, dtype=torch.float64)
    found = dict(clip=[], clipped=[], moved=[])
    for layer in LAYERS:
        start, weight = first[2 * layer], last[2 * layer]
        rms = weight.square().mean((1, 2)).sqrt()
        scaled = (weight / rms[:, None, None]).flatten()
        limit = float(EDGES[-1]) - 1e-9
        inside = scaled.clamp(-limit, limit)
        counts += torch.histogram(inside, EDGES).hist
        clips = torch.stack([best_clip(w, bits, ratios) for w in weight])
        beyond = weight.abs() > clips[:, None, None]
        found['clip'].append((clips / rms).tolist())
        found['clipped'].append(beyond.double().mean((1, 2)).tolist())
        way = (weight - start).flatten(1).norm(dim=1)
        found['moved'].append((way / start.flatten(1).norm(dim=1)).tolist())
    shapes = [
        [kurtosis(kept[s][2 * layer]).tolist() for layer in LAYERS]
        for s in steps
    ]
    return dict(
        found,
        edges=EDGES.tolist(),
        counts=counts.tolist(),
        steps=steps,
        kurtosis=shapes,
    )


def best_uniform(weight: Tensor, bits: int, ratios: Sequence[float]) -> Tensor:
    """The candidate with the least mean squared weight error."""
    return _best(weight, bits, ratios)[0]


def best_clip(weight: Tensor, bits: int, ratios: Sequence[float]) -> Tensor:
    """The clipping range behind :func:`best_uniform`."""
    return _best(weight, bits, ratios)[1]


def _best(
    weight: Tensor, bits: int, ratios: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Quantized weight and clipping range of least weight error."""
    found = candidates(weight, bits, ratios)
    at = int((found - weight).square().mean((1, 2)).argmin())
    return found[at], weight.abs().max() * ratios[at]


def code_entropy(quantized: Tensor, bits: int) -> float:
    """Entropy of the code histogram over ``bits``: 1 if all alike."""
    _, counts = quantized.unique(return_counts=True)
    p = counts.double() / quantized.numel()
    return float(-(p * p.log2()).sum() / bits)


def uniform_distance(x: Tensor, low: float, high: float) -> float:
    """Kolmogorov distance to the uniform density on [low, high].

    Args:
        x (Tensor): A sample, clamped to the interval.
        low (float): Lower end.
        high (float): Upper end.

    Returns:
        float: 0 (uniform) to 1.
    """
    u = ((x.flatten().clamp(low, high) - low) / (high - low)).sort().values
    n = len(u)
    i = torch.arange(n + 1, dtype=u.dtype) / n
    return float(torch.maximum(i[1:] - u, u - i[:-1]).max())


def psi(weight: Tensor, quantizer: LLAQuantizer) -> Tensor:
    """Eq. 9 for the weights at or above 0: ``k+ log2(w) + a+``.

    Args:
        weight (Tensor): Any shape.
        quantizer (LLAQuantizer): Fitted to it for the whole tensor.

    Returns:
        Tensor: float64 ``[P]``, in codes of that side.
    """
    k, a = (p.detach().double() for p in quantizer.parameters_of())
    positive = weight[weight > 0].double()
    return k[0, -1] * positive.log2() + a[0, -1]


def fitted(weight: Tensor, bits: int) -> LLAQuantizer:
    """An LLAQ for the whole tensor, as its ``fit`` leaves it."""
    quantizer = LLAQuantizer(bits, granularity='tensor', role='weight')
    quantizer.fit(weight.float())
    return quantizer


def llaq_study(
    task: Task,
    params: Params,
    widths: Sequence[int],
    ratios: Sequence[float],
) -> dict:
    """Uniform levels of least weight error against fitted LLAQ (Fig. 7).

    Both quantize whole tensors. The loss is that with all of LAYERS
    quantized.

    Args:
        task (Task): Task with its data.
        params (list[Tensor]): Trained replicas.
        widths (Sequence[int]): Bit-widths.
        ratios (Sequence[float]): Clipping ranges of the uniform quantizer
            over ``max|w|``.

    Returns:
        dict: For each width and quantizer ``relative_mse`` (of the mean
        square) and ``entropy`` ``[layer][R]``, ``test_loss`` and
        ``test_skill`` ``[R]``; ``distance``: of the weights to a uniform
        density over the range of the largest width's quantizer,
        ``linear`` and ``log`` (psi), ``[layer][R]``.
    """
    found = {}
    for bits in widths:
        for kind in ('uniform', 'llaq'):
            changed = list(params)
            rows = dict(relative_mse=[], entropy=[])
            for layer in LAYERS:
                weight = params[2 * layer]
                made = []
                for w in weight:
                    if kind == 'uniform':
                        made.append(best_uniform(w, bits, ratios))
                    else:
                        made.append(fitted(w, bits)(w.float()).double())
                done = torch.stack(made)
                error = (done - weight).square().mean((1, 2))
                error /= weight.square().mean((1, 2))
                rows['relative_mse'].append(error.tolist())
                rows['entropy'].append([code_entropy(d, bits) for d in done])
                changed[2 * layer] = done
            raw = forward(changed, task.x_test)
            loss = task.loss(raw, task.y_test).mean(-1)
            rows['test_loss'] = loss.tolist()
            rows['test_skill'] = task.skill(raw, task.y_test).tolist()
            found[f'{kind}_{bits}'] = rows
    distance = dict(linear=[], log=[])
    bits = max(widths)
    for layer in LAYERS:
        linear, log = [], []
        for w in params[2 * layer]:
            clip = float(best_clip(w, bits, ratios))
            linear.append(uniform_distance(w[w > 0], 0, clip))
            q = fitted(w, bits)
            ends = q.grid.first - 0.5, q.grid.top + 0.5
            log.append(uniform_distance(psi(w, q), *ends))
        distance['linear'].append(linear)
        distance['log'].append(log)
    return dict(found, distance=distance)


def levels_example(weight: Tensor, bits: int, ratios: Sequence[float]) -> dict:
    """One tensor's weights, psi and levels, for the picture.

    Args:
        weight (Tensor): ``[out, in]``.
        bits (int): Bit-width.
        ratios (Sequence[float]): Clipping ranges over ``max|w|``.

    Returns:
        dict: ``weights``, ``psi`` (of the positive ones), ``psi_levels``,
        ``llaq_levels``, ``uniform_levels``.
    """
    q = fitted(weight, bits)
    clip = float(best_clip(weight, bits, ratios))
    step = clip / (2**bits - 1) * 2
    codes = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    return dict(
        weights=weight.flatten().tolist(),
        psi=psi(weight, q).tolist(),
        psi_levels=list(range(q.grid.first, q.grid.top + 1)),
        llaq_levels=q.codebook().detach()[0].tolist(),
        uniform_levels=[c * step for c in codes],
    )
