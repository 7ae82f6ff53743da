# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Draws docs/pictures/levels.svg: the values that each quantizer has."""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from mmdet_ptq.quantizers import (
    AdaLogQuantizer,
    BaseQuantizer,
    CodebookQuantizer,
    FitsPoints,
    FitsTensor,
    LLAQuantizer,
    LogQuantizer,
    PowerOfTwoQuantizer,
    SubsetQuantizer,
    TwinUniformQuantizer,
    UniformQuantizer,
)

GELU_MIN = 0.16997124254703522
UNIFORM, OTHER, DATA = '#7fb2e5', '#1f5fa8', '#e4e4e4'

Rows = dict[str, BaseQuantizer]


def weights(bits: int) -> tuple[Tensor, Rows]:
    """Weights of one channel, and quantizers for them."""
    uniform = torch.rand(1, 4000, generator=seeded()) - 0.5
    x = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    return x, {
        'Uniform': UniformQuantizer(bits, symmetric=True),
        'LLAQ': LLAQuantizer(bits, granularity='tensor'),
        'SubSetQ': SubsetQuantizer(min(bits, 4), granularity='tensor'),
        'Codebook': CodebookQuantizer(bits, role='weight'),
    }


def attention(bits: int) -> tuple[Tensor, Rows]:
    """Outputs of a softmax over 30 keys."""
    x = torch.randn(200, 30, generator=seeded()).mul(2.5).softmax(-1)
    return x.reshape(1, -1), {
        'Uniform': UniformQuantizer(bits),
        'Log, base 2': LogQuantizer(bits),
        'Log, base √2': LogQuantizer(bits, base='sqrt2'),
        'AdaLog': AdaLogQuantizer(bits),
        'TwinUniform': TwinUniformQuantizer(bits),
    }


def hidden(bits: int) -> tuple[Tensor, Rows]:
    """Outputs of a GELU."""
    x = F.gelu(torch.randn(1, 4000, generator=seeded()) - 0.3)
    return x, {
        'Uniform': UniformQuantizer(bits),
        'AdaLog, shifted': AdaLogQuantizer(bits, shift=GELU_MIN),
        'TwinUniform': TwinUniformQuantizer(bits, form='gelu'),
    }


def channels(bits: int) -> tuple[Tensor, Rows]:
    """Three channels of which each has twice the range of the last."""
    x = torch.randn(3, 2000, generator=seeded())
    x *= 2.0 ** torch.arange(3.0)[:, None]
    one = PowerOfTwoQuantizer(bits, max_exponent=2, axis=0)
    return x, {'PowerOfTwo': one}


PANELS = {
    'weights': weights,
    'after a softmax': attention,
    'after a GELU': hidden,
    'three channels': channels,
}


def seeded() -> torch.Generator:
    """The same numbers in each picture."""
    return torch.Generator().manual_seed(0)


def fit(quantizer: BaseQuantizer, x: Tensor) -> None:
    """As a calibration would; x is ``[K, N]``."""
    if isinstance(quantizer, FitsTensor):
        quantizer.fit(x)
        return
    quantizer.set_range(*(e(x) for e in ends(quantizer)))
    if isinstance(quantizer, FitsPoints):
        quantizer.fit_points(x, torch.full_like(x, 1 / x.shape[1]))


def ends(quantizer: BaseQuantizer) -> tuple:
    """Lowest and highest value, of each row or of the whole tensor."""
    if quantizer.granularity.kind == 'tensor':
        return (lambda x: x.min()[None]), (lambda x: x.max()[None])
    return (lambda x: x.amin(1)), (lambda x: x.amax(1))


def levels(quantizer: BaseQuantizer, rows: int) -> list[list[float]]:
    """The different values of each row.

    Args:
        quantizer (BaseQuantizer): With a grid.
        rows (int): Rows of the tensor that it is for.

    Returns:
        list[list[float]]: Ascending.
    """
    e = quantizer.encoding()
    codes = torch.arange(e.first_code, e.last_code + 1).expand(rows, -1)
    return [row.unique().tolist() for row in e.decode(codes)]


Lines = list[tuple[str, list[float]]]
"""Name and values of each line of a panel."""


def lines_of(x: Tensor, rows: Rows) -> Lines:
    """Fits quantizers to data, and says which values they have then."""
    found = []
    for name, quantizer in rows.items():
        fit(quantizer, x)
        every = levels(quantizer, len(x))
        for i, values in enumerate(every):
            which = f', channel {i + 1}' if len(every) > 1 else ''
            found.append((name + which, values))
    return found


def draw(axes: Axes, title: str, x: Tensor, rows: Rows) -> None:
    """One panel: the data, and below them a line for each quantizer."""
    draw_lines(axes, title, x, lines_of(x, rows))


def draw_lines(axes: Axes, title: str, x: Tensor, lines: Lines) -> None:
    """One panel: the data, and below them values; the rows of Uniform pale."""
    low, high = float(x.min()), float(x.max())
    for at, (name, values) in enumerate(lines):
        colour = UNIFORM if name == 'Uniform' else OTHER
        axes.vlines(values, at - 0.32, at + 0.32, colour, linewidth=1.6)
        low, high = min(low, *values), max(high, *values)
    at = len(lines)
    heights, edges = (t.numpy() for t in torch.histogram(x.flatten(), 60))
    # roots, so that tails are seen
    heights = (heights / heights.max()) ** 0.5 * at
    axes.stairs(
        at - 0.5 - heights, edges, baseline=at - 0.5, fill=True, color=DATA
    )
    axes.set_yticks(range(at), [name for name, _ in lines])
    axes.set_ylim(at - 0.5, -0.5)
    room = 0.02 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.set_title(title, loc='left', fontsize=10, weight='bold')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(left=False, labelsize=9)


def main() -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/pictures/levels.svg')
    parser.add_argument('--bits', type=int, default=4, help='2 to 8')
    args = parser.parse_args()
    made = {title: make(args.bits) for title, make in PANELS.items()}
    heights = [sum(len(x) for _ in rows) + 1 for x, rows in made.values()]
    mpl.rcParams['svg.hashsalt'] = 'levels'
    figure = Figure(figsize=(9.6, 7.2), facecolor='white', layout='tight')
    every = figure.subplots(len(made), 1, height_ratios=heights)
    for axes, (title, (x, rows)) in zip(every, made.items(), strict=True):
        draw(axes, title, x, rows)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(
        f'Values of {args.bits} bits (lines) for data (grey, roots of counts)',
        fontsize=11,
    )
    figure.savefig(args.out, metadata={'Date': None})
    return 0


if __name__ == '__main__':
    sys.exit(main())
