# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Points that stand for histograms, as many as a grid of some bits needs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .bins import coarsen, power_of_two
from .histogram import HistogramObserver

Level = tuple[HistogramObserver, int]
"""A histogram observer and one of its pyramid levels."""


def points_of(some: Sequence[Level], bits: int) -> tuple[Tensor, Tensor]:
    """Points of N levels, and their shares of a row's mass.

    The grid's steps have to be several points wide, or the error would tell
    more of the bins than of the data: bins are split, or merged to save
    time, to about 8 points for each of the ``2^bits`` codes.

    Args:
        some (Sequence[Level]): With K rows of B bins each, on one device.
        bits (int): Width of the grid that they are for.

    Returns:
        tuple[Tensor, Tensor]: float32 ``[N, K, P]`` each, where the
        histograms are. Shares are 0 where a level has fewer than P points.
    """
    counts = torch.stack([one.counts[level] for one, level in some])
    total = counts.sum(2, keepdim=True).clamp(min=1)
    rows, half = counts.shape[1], counts.shape[2] // 2
    # zeros are represented exactly, wherever the centre of their bin is
    zeros = torch.stack([one.zeros[level] for one, level in some])
    counts[..., half] -= zeros
    # what the CPU has goes in one copy
    known = [
        torch.stack([one.exponent[level], one.low[level], one.high[level]])
        for one, level in some
    ]
    exponent, low, high = torch.stack(known, 1).to(
        counts.device, non_blocking=True
    )
    wanted = max(1024, 1 << bits + 3) if rows <= 16 else 512
    counts, exponent = _merged(counts, exponent, 2 * wanted)
    bins, inside, parts, real = _places(counts, wanted)
    place = (bins - half) + inside
    points = power_of_two(exponent)[..., None] * place[:, None]
    points = points.to(torch.float32)
    # the outermost bins reach beyond the data
    points = points.maximum(low[..., None]).minimum(high[..., None])
    mass = counts.gather(2, bins[:, None].expand(-1, rows, -1))
    share = mass / (total * parts[:, None]).double()
    share = torch.where(real[:, None], share, 0.0)
    return points, share.to(torch.float32)


def _merged(
    counts: Tensor, exponent: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Histograms of at most so many bins that hold something.

    Args:
        counts (Tensor): ``[N, K, B]``.
        exponent (Tensor): ``[N, K]``.
        most (int): Bins in which any of the K rows has something.

    Returns:
        tuple[Tensor, Tensor]: As given, bins merged where they were more.
    """
    for _ in range(max(0, (counts.shape[2] // most).bit_length() - 1)):
        wide = (counts > 0).any(1).sum(1, keepdim=True) > most
        # a GPU would have to be waited for
        if wide.is_cpu and not bool(wide.any()):
            break
        by = wide.long().expand(exponent.shape)
        counts = coarsen(counts.flatten(0, 1), by.reshape(-1))
        counts = counts.unflatten(0, exponent.shape)
        exponent = exponent + by
    return counts, exponent


def _places(
    counts: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the points are that divide the bins that hold something.

    Args:
        counts (Tensor): int64 ``[N, K, B]``.
        wanted (int): Points; there may be twice as many, or too few bins.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: Of each point ``[N, P]`` its
        bin, its place inside in bins, into how many parts it is divided
        (``[N, 1]``), and whether it is one at all.
    """
    held = (counts > 0).any(1)
    filled = held.sum(1, keepdim=True)
    parts = (wanted // filled.clamp(min=1)).clamp(1, 8)
    # of a CPU no more than needed; a GPU would have to be asked
    count = int((filled * parts).max()) if held.is_cpu else 2 * wanted
    bins = torch.arange(held.shape[1], device=held.device).expand_as(held)
    # those held, in their order; all others are written behind them
    nth = torch.where(held, held.cumsum(1) - 1, held.shape[1])
    order = bins.new_zeros(len(held), held.shape[1] + 1)
    order.scatter_(1, nth, bins)
    point = torch.arange(count, device=held.device)
    nth = (point // parts).clamp(max=held.shape[1])
    inside = ((point % parts).double() + 0.5) / parts
    return order.gather(1, nth), inside, parts, point < filled * parts
