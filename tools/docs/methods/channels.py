# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Methods that say which channels share a grid."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmdet_ptq.observers import fit_groups
from mmdet_ptq.quantizers import InstanceGroupQuantizer, PowerOfTwoQuantizer
from tools.docs.make_levels_picture import DATA, OTHER, fit, seeded

GRIDS = ('#1f5fa8', '#d9730d', '#2a8f57', '#8a4fc7')
Ends = Sequence[tuple[float, float]]


def tokens(seed: int = 0, channels: int = 16) -> Tensor:
    """Tokens of one image behind a norm: some channels are much wider."""
    generator = seeded().manual_seed(seed)
    x = torch.randn(200, channels, generator=generator)
    spread = torch.rand(channels, generator=generator) ** 3 * 4 + 0.3
    centre = torch.randn(channels, generator=generator)
    return x * spread + centre


def bars(
    axes: Axes, title: str, x: Tensor, grids: Ends, colours: Sequence[str]
) -> None:
    """The range of each channel in grey, the ends of its grid as lines."""
    low, high = x.amin(0), x.amax(0)
    for i, (start, end) in enumerate(grids):
        axes.bar(i, high[i] - low[i], 0.8, low[i], color=DATA)
        axes.hlines([start, end], i - 0.45, i + 0.45, colours[i], linewidth=2)
        axes.vlines(i, start, end, colours[i], linewidth=0.8)
    axes.set_title(title, loc='left', fontsize=10, weight='bold')
    axes.set_xticks([])
    axes.set_xlabel('channels')
    axes.spines[['top', 'right']].set_visible(False)


def pair(first: tuple, second: tuple) -> Figure:
    """Two charts side by side: title, data, grids, colours."""
    figure = Figure(figsize=(7.2, 3), facecolor='white', layout='tight')
    for axes, one in zip(
        figure.subplots(1, 2, sharey=True), (first, second), strict=True
    ):
        bars(axes, *one)
    return figure


def whole(x: Tensor) -> list[tuple[float, float]]:
    """One grid for all channels."""
    return [(float(x.min()), float(x.max()))] * x.shape[1]


def own(x: Tensor) -> list[tuple[float, float]]:
    """A grid for each channel."""
    return list(zip(x.amin(0).tolist(), x.amax(0).tolist(), strict=True))


def repq_vit() -> Figure:
    """Channels have their own grids before, and one behind the norm."""
    x = tokens()
    low, high = x.amin(0), x.amax(0)
    factor = (high - low) / (high - low).mean()
    mean_low = (low / factor).mean()
    moved = (x - low) / factor + mean_low
    colours = [OTHER] * x.shape[1]
    return pair(
        ('a grid for each channel', x, own(x), colours),
        ('factors in norm and weight: one grid', moved, whole(moved), colours),
    )


def fq_vit() -> Figure:
    """Grids that differ by powers of two."""
    x = tokens()
    quantizer = PowerOfTwoQuantizer(4, max_exponent=3, axis=0)
    fit(quantizer, x.T.contiguous())
    encoding = quantizer.encoding()
    codes = torch.tensor([[encoding.first_code, encoding.last_code]])
    ends = encoding.decode(codes.expand(x.shape[1], -1))
    widths = ends[:, 1] - ends[:, 0]
    kinds = [round(float(w)) for w in (widths / widths.min()).log2()]
    return pair(
        ('one grid', x, whole(x), [OTHER] * x.shape[1]),
        (
            'times 1, 2, 4 or 8',
            x,
            [(float(a), float(b)) for a, b in ends],
            [GRIDS[kind] for kind in kinds],
        ),
    )


def group_static() -> Figure:
    """Consecutive channels share a grid."""
    x = tokens()
    grids = [
        (float(part.min()), float(part.max()))
        for part in x.split(4, 1)
        for _ in range(4)
    ]
    colours = [GRIDS[i // 4] for i in range(x.shape[1])]
    return pair(
        ('one grid', x, whole(x), [OTHER] * x.shape[1]),
        ('a grid for each four in order', x, grids, colours),
    )


def igq_vit() -> Figure:
    """The channels of each image choose among the same few grids."""
    images = [tokens(seed) for seed in (0, 1)]
    ends = torch.cat([torch.stack([x.amin(0), x.amax(0)], 1) for x in images])
    quantizer = InstanceGroupQuantizer(4, num_groups=4)
    found = fit_groups(ends, 4, room=quantizer.room)
    quantizer.set_range(*found.float().unbind(1))
    found = []
    for name, x in zip(('one image', 'another'), images, strict=True):
        chosen = quantizer.groups_of(x).tolist()
        grids = [
            (float(quantizer.low[g]), float(quantizer.high[g])) for g in chosen
        ]
        found.append((name, x, grids, [GRIDS[g] for g in chosen]))
    return pair(*found)
