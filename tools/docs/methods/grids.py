# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Methods that say where the values of a grid lie."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from mmdet_ptq.quantizers import UniformQuantizer
from tools.docs.make_levels_picture import (
    OTHER,
    Lines,
    attention,
    draw_lines,
    hidden,
    levels,
    lines_of,
    seeded,
    weights,
)

BITS = 4


def panels(*content: tuple[str, Tensor, Lines]) -> Figure:
    """Panels below one another: title, data, lines of values."""
    heights = [len(lines) + 1.2 for *_, lines in content]
    size = (7.2, 0.42 * sum(heights) + 0.3 * len(content))
    figure = Figure(figsize=size, facecolor='white', layout='tight')
    every = figure.subplots(
        len(content), 1, height_ratios=heights, squeeze=False
    )
    for axes, one in zip(every[:, 0], content, strict=True):
        draw_lines(axes, *one)
    return figure


def cut(x: Tensor, p: float = 2.0, low: bool = True) -> UniformQuantizer:
    """A uniform quantizer whose range has the least error.

    Args:
        x (Tensor): The data.
        p (float): Exponent of the error.
        low (bool): Whether the lower end is searched too.
    """
    tried = []
    for i in range(20, 101):
        quantizer = UniformQuantizer(BITS)
        share = i / 100
        ends = x.min() * (share if low else 1), x.max() * share
        quantizer.set_range(*(end[None] for end in ends))
        error = float((quantizer(x) - x).abs().pow(p).sum())
        tried.append((error, i, quantizer))
    return min(tried, key=lambda one: one[:2])[2]


def values(quantizer: UniformQuantizer) -> list[float]:
    """Of its only row."""
    return levels(quantizer, 1)[0]


def minmax() -> Figure:
    """The range is that of the data."""
    x, _ = weights(BITS)
    rows = dict(Uniform=UniformQuantizer(BITS))
    lines = [('min-max', lines_of(x, rows)[0][1])]
    return panels(('weights of a channel', x, lines))


def uniform() -> Figure:
    """The range is cut where the error is least."""
    x, _ = weights(BITS)
    ends = lines_of(x, dict(Uniform=UniformQuantizer(BITS)))
    lines = [*ends, ('least error', values(cut(x)))]
    return panels(('weights of a channel', x, lines))


def q_yolo() -> Figure:
    """The upper end is cut, the lower one stays."""
    x = F.silu(torch.randn(1, 4000, generator=seeded()) * 1.5)
    ends = lines_of(x, dict(Uniform=UniformQuantizer(BITS)))
    lines = [*ends, ('upper end cut', values(cut(x, low=False)))]
    return panels(('after a SiLU', x, lines))


def subsetq() -> Figure:
    """Values are sums of powers of two."""
    x, rows = weights(BITS)
    kept = {k: rows[k] for k in ('Uniform', 'SubSetQ')}
    return panels(('weights of a channel', x, lines_of(x, kept)))


def gptq_codebook() -> Figure:
    """Values of least error, at any distance from each other."""
    x, _ = weights(BITS)
    ends = lines_of(x, dict(Uniform=UniformQuantizer(BITS)))
    lines = [*ends, ('least error', lloyd(x, 2**BITS))]
    return panels(('weights of a channel', x, lines))


def lloyd(x: Tensor, count: int, steps: int = 200) -> list[float]:
    """Values of least squared error, each the mean of what is nearest to it.

    Args:
        x (Tensor): The data.
        count (int): How many values.
        steps (int): How often data and values are matched (Lloyd, 1982).
    """
    x = x.flatten()
    found = x.quantile((torch.arange(count) + 0.5) / count)
    for _ in range(steps):
        nearest = (x[:, None] - found).abs().argmin(1)
        size = nearest.bincount(minlength=count).clamp(min=1)
        found = torch.zeros(count).index_add(0, nearest, x) / size
    return sorted(found.tolist())


def ptq4vit() -> Figure:
    """Two grids for outputs of softmax and GELU."""
    found = []
    for title, make in (
        ('after a softmax', attention),
        ('after a GELU', hidden),
    ):
        x, rows = make(BITS)
        kept = {k: rows[k] for k in ('Uniform', 'TwinUniform')}
        found.append((title, x, lines_of(x, kept)))
    return panels(*found)


def apq_vit() -> Figure:
    """All codes of a softmax are used, its largest value kept."""
    x, _ = attention(BITS)
    signed = UniformQuantizer(BITS, symmetric=True)
    signed.set_range(-x.max()[None], x.max()[None])
    whole = UniformQuantizer(BITS)
    whole.set_range(torch.zeros(1), x.max()[None])
    # the codes of values below zero are never used
    used = [v for v in values(signed) if v >= 0]
    lines = [('signed codes', used), ('all codes', values(whole))]
    return panels(('after a softmax', x, lines))


def adalog() -> Figure:
    """Powers of a base that is searched."""
    x, rows = attention(BITS)
    kept = {k: q for k, q in rows.items() if k != 'TwinUniform'}
    y, others = hidden(BITS)
    shifted = {k: q for k, q in others.items() if k != 'TwinUniform'}
    return panels(
        ('after a softmax', x, lines_of(x, kept)),
        ('after a GELU', y, lines_of(y, shifted)),
    )


def noisyquant() -> Figure:
    """Values in the middle of a step are rounded both ways."""
    generator = seeded()
    step = 2 / 15
    # 0.45 of a step from the nearest value
    x = 2.45 * step + 0.01 * torch.randn(1, 4000, generator=generator)
    x[:, :40] = torch.linspace(-1, 1, 40)
    noise = (2 * torch.rand(1, 4000, generator=generator) - 1) * 0.7 * step
    quantizer = UniformQuantizer(BITS)
    quantizer.set_range(-torch.ones(1), torch.ones(1))
    found = []
    for title, data in (('without noise', x), ('with noise', x + noise)):
        # the bias takes the mean of the noise away again
        error = quantizer(data) - data
        rms = float(error[:, 40:].mean(0).view(-1, 40).mean(1).square().mean())
        title = f'{title}: error of means of 40 inputs {rms**0.5 / step:.2f}'
        found.append((f'{title} steps', data, [('grid', values(quantizer))]))
    return panels(*found)


def ptq_for_vit() -> Figure:
    """Of two ranges the one whose outputs correlate better."""
    generator = seeded()
    x = torch.randn(160, 32, generator=generator)
    x[::20, :2] *= 6
    weight = torch.randn(32, generator=generator)
    outputs = x @ weight
    figure = Figure(figsize=(7.2, 3.2), facecolor='white', layout='tight')
    every = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, share in zip(every, (1.0, 0.5), strict=True):
        quantizer = UniformQuantizer(BITS, symmetric=True)
        end = share * x.abs().max()[None]
        quantizer.set_range(-end, end)
        found = quantizer(x) @ weight
        r = float(torch.corrcoef(torch.stack([outputs, found]))[0, 1])
        axes.scatter(outputs, found, s=6, color=OTHER)
        what = 'largest input' if share == 1 else 'half of it'
        axes.set_title(f'range: {what}, correlation {r:.3f}', fontsize=10)
        axes.set_xlabel('float output')
        axes.spines[['top', 'right']].set_visible(False)
    every[0].set_ylabel('output, inputs of 4 bits')
    return figure
