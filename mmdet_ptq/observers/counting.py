# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Samples that enter histograms, of one observer or of many at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .bins import power_of_two

if TYPE_CHECKING:
    from .histogram import HistogramObserver

#: values that a GPU counts at once, about 60 bytes each
TOGETHER = 1 << 21


class Sample(NamedTuple):
    """What enters a histogram.

    Attributes:
        observer (HistogramObserver): Its bins hold all values.
        level (int): Pyramid level.
        values (Tensor): float32 ``[K, S]``.
        weight (int): How often each value counts.
    """

    observer: HistogramObserver
    level: int
    values: Tensor
    weight: int


def in_parts(samples: list[Sample]) -> Iterator[list[Sample]]:
    """Samples that are counted at once.

    Of a GPU a single one would ask for a dozen kernels, each too short to be
    worth its start; of a CPU it fits the cache.
    """
    part: list[Sample] = []
    size = 0
    for sample in samples:
        size += sample.values.numel()
        if part and (sample.values.is_cpu or size > TOGETHER):
            yield part
            part, size = [], sample.values.numel()
        part.append(sample)
    yield part


def count(samples: list[Sample]) -> None:
    """Adds samples to the histograms of their observers."""
    if len(samples) == 1:
        _count_one(*samples[0])
    else:
        _count_many(samples)


def _count_one(
    one: HistogramObserver, level: int, values: Tensor, weight: int
) -> None:
    # exact: a float32 times a power of two, in float64
    factor = power_of_two(-one.exponent[level]).to(values.device)
    index = (values.to(torch.float64) * factor[:, None]).floor_()
    index = index.to(torch.int64)
    rows = torch.arange(one.rows, device=index.device)
    index += (rows * 2 * one.half + one.half)[:, None]
    index = index.reshape(-1)
    each = torch.full((1,), weight, device=index.device)
    counts = one.counts[level].view(-1)
    counts.index_add_(0, index, each.expand_as(index))
    one.zeros[level] += (values == 0).sum(1) * weight


def _count_many(samples: list[Sample]) -> None:
    """As one by one, in few kernels and one copy to the device."""
    touched = list({(s.observer, s.level): None for s in samples})
    rows = [one.rows for one, _ in touched]
    bins = [one.counts[level].numel() for one, level in touched]
    values = torch.cat([s.values.reshape(-1) for s in samples])
    factor, zero, size, weight, row = _table(samples, touched).to(
        values.device, non_blocking=True
    )
    # of each value the row of its sample
    at = torch.arange(len(size), device=values.device)
    at = at.repeat_interleave(size.long(), output_size=len(values))
    index = (values * factor[at]).floor_().add_(zero[at]).long()
    weight = weight.long()[at]
    counts = weight.new_zeros(sum(bins)).index_add_(0, index, weight)
    weight = torch.where(values == 0, weight, 0)
    zeros = weight.new_zeros(sum(rows)).index_add_(0, row.long()[at], weight)
    torch._foreach_add_(
        [one.zeros[level] for one, level in touched], list(zeros.split(rows))
    )
    torch._foreach_add_(
        [one.counts[level].view(-1) for one, level in touched],
        list(counts.split(bins)),
    )


def _table(
    samples: list[Sample], touched: list[tuple[HistogramObserver, int]]
) -> Tensor:
    """What the counting has to know of each row of each sample.

    Args:
        samples (list[Sample]): N samples of R rows in all.
        touched (list[tuple]): Their observers and levels; the bins of these
            lie one after the other, and so do their rows.

    Returns:
        Tensor: float64 ``[5, R]`` on the CPU: the factor that makes bins of
        values, the bin of zero, how many values there are, how often each
        counts, and the row among all of ``touched``.
    """
    bins = rows = 0
    begin = {}
    for one, level in touched:
        begin[one, level] = bins, rows
        bins += one.rows * 2 * one.half
        rows += one.rows
    each = []
    for one, level, values, weight in samples:
        bin_at, row_at = begin[one, level]
        each.append(
            [bin_at + one.half, 2 * one.half, values.shape[1], weight, row_at]
        )
    heights = [s.observer.rows for s in samples]
    told = _repeated(each, heights)
    inside = torch.cat([torch.arange(k, device='cpu') for k in heights])
    told[:, 0] += inside * told[:, 1]
    told[:, 4] += inside
    exponent = torch.cat([s.observer.exponent[s.level] for s in samples])
    return torch.cat([power_of_two(-exponent)[None], told.t()[[0, 2, 3, 4]]])


def _repeated(each: list, times: list[int]) -> Tensor:
    """Numbers that the CPU has, float64, each as often as there are rows."""
    numbers = torch.tensor(each, dtype=torch.float64, device='cpu')
    often = torch.tensor(times, device='cpu')
    return numbers.repeat_interleave(often, 0)


def grow(touched: list[tuple[HistogramObserver, int]]) -> None:
    """Has the bins of observers and levels hold their extremes."""
    low = torch.cat([one.low[level] for one, level in touched])
    high = torch.cat([one.high[level] for one, level in touched])
    exponent = torch.cat([one.exponent[level] for one, level in touched])
    rows = [one.rows for one, _ in touched]
    half = _repeated([one.half for one, _ in touched], rows)
    reach = power_of_two(exponent) * half
    beyond = (low < -reach) | (high >= reach)
    if not bool(beyond.any()):
        return
    for (one, level), part in zip(touched, beyond.split(rows), strict=True):
        if bool(part.any()):
            one._rescale(level)
