# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A histogram that is a function of the data, not of their order."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .base import BaseObserver, State, on_cpu
from .sampling import sample_rows

# Below the exponent of the smallest bin of the smallest subnormal float32.
MIN_EXPONENT = -170
MOST_BINS, FEWEST_BINS, ALL_BINS = 1 << 14, 1 << 10, 1 << 19
#: values that a GPU counts at once, about 60 bytes each
TOGETHER = 1 << 21


def exponents(low: Tensor, high: Tensor, half: int) -> Tensor:
    """Smallest e such that ``[-half * 2^e, half * 2^e)`` holds a range.

    Args:
        low (Tensor): float32, any shape; infinite where there is no data.
        high (Tensor): Same shape.
        half (int): A power of two.

    Returns:
        Tensor: int32 of that shape.
    """
    fill = torch.isfinite(low) & torch.isfinite(high)
    down = torch.where(fill, -low, 0.0).double().clamp(min=0.0)
    up = torch.where(fill, high, 0.0).double().clamp(min=0.0)
    # x = f * 2^q with f in [1/2, 1): x < 2^q, and x <= 2^(q-1) if f = 1/2
    fraction, q_down = torch.frexp(down)
    q_down = q_down - (fraction == 0.5).to(q_down.dtype)
    q_up = torch.frexp(up).exponent
    lowest = MIN_EXPONENT + half.bit_length() - 1
    q_down = torch.where(down > 0, q_down, lowest)
    q_up = torch.where(up > 0, q_up, lowest)
    return torch.maximum(q_down, q_up).int() - (half.bit_length() - 1)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2 ** exponent`` in float64 (torch.ldexp works in float32)."""
    return torch.exp2(exponent.to(torch.float64))


def coarsen(counts: Tensor, by: Tensor) -> Tensor:
    """Merges ``2^by`` neighbours, aligned at zero.

    Args:
        counts (Tensor): int64 ``[R, B]``; bin ``B/2 + i`` covers ``[i,
            i+1)``.
        by (Tensor): int ``[R]``, at least 0, for each row.

    Returns:
        Tensor: ``[R, B]`` in bins ``2^by`` times as wide.
    """
    half = counts.shape[1] // 2
    place = torch.arange(-half, half, device=counts.device)
    index = place >> by.clamp(max=62).long()[:, None]
    return torch.zeros_like(counts).scatter_add_(1, index + half, counts)


class HistogramObserver(BaseObserver):
    """Base of observers that search a histogram.

    Bin i of a row covers ``[i * 2^e, (i + 1) * 2^e)``. When data exceed the
    bins, e grows and neighbours are summed, so that the histogram depends
    only on the data, and those of several processes add up exactly.

    Large tensors enter by a sample (see :mod:`.sampling`), extremes and
    therefore e by all their elements.

    Attributes:
        counts (Tensor): int64 ``[L, K, B]``.
        zeros (Tensor): int64 ``[L, K]``, how many of them are exactly zero:
            every grid represents those without error.
        exponent (Tensor): int32 ``[L, K]``.
    """

    def _allocate(self, rows: int) -> None:
        super()._allocate(rows)
        share = 1 << (ALL_BINS // max(1, rows)).bit_length() - 1
        bins = max(FEWEST_BINS, min(MOST_BINS, share))
        shape = (self.levels, rows)
        self.counts = torch.zeros(
            (*shape, bins), dtype=torch.int64, device='cpu'
        )
        self.zeros = torch.zeros(shape, dtype=torch.int64, device='cpu')
        self.exponent = torch.full(
            shape, MIN_EXPONENT, dtype=torch.int32, device='cpu'
        )

    @property
    def half(self) -> int:
        """Number of bins on either side of zero."""
        return self.counts.shape[-1] // 2

    def _keep(self, x: Tensor) -> tuple[Tensor, int]:
        sample, weight = sample_rows(x, self.granularity)
        # a copy: what follows may work in place on what was observed
        return sample.to(torch.float32, copy=weight == 1), weight

    def _rescale(self, level: int) -> None:
        exponent = exponents(self.low[level], self.high[level], self.half)
        by = exponent - self.exponent[level]
        counts = self.counts[level]
        if self.exponent[level].max() > MIN_EXPONENT:  # there has been data
            rows = by.nonzero()[:, 0]
            rows, by = torch.stack([rows, by[rows]]).to(
                counts.device, non_blocking=True
            )
            counts[rows] = coarsen(counts[rows], by)
        self.exponent[level] = exponent

    @classmethod
    def add_kept(
        cls, kept: list[tuple['HistogramObserver', int, tuple[Tensor, int]]]
    ) -> None:
        """See the base class."""
        samples = [Sample(one, level, *found) for one, level, found in kept]
        touched = list({(s.observer, s.level): None for s in samples})
        for one, _ in touched:
            one._move(samples[0].values.device)
        grow(touched)
        for part in _parts(samples):
            count(part)

    def _move(self, device: torch.device) -> None:
        """Takes the histograms to where the data is."""
        self.counts = self.counts.to(device)
        self.zeros = self.zeros.to(device)

    def state_dict(self) -> State:
        """See the base class."""
        return dict(
            super().state_dict(),
            **on_cpu(
                counts=self.counts, zeros=self.zeros, exponent=self.exponent
            ),
        )

    def load_state_dict(self, state: State) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.counts = state['counts'].clone()
        self.zeros = state['zeros'].clone()
        self.exponent = state['exponent'].clone()
        # a range found elsewhere would have other last bits
        self._move(self.device)

    def _merged(self, states: list[State]) -> State:
        exponent = torch.stack([s['exponent'] for s in states]).amax(0)
        counts = torch.zeros_like(states[0]['counts'])
        for s in states:
            by = (exponent - s['exponent']).reshape(-1)
            counts += coarsen(s['counts'].flatten(0, 1), by).view_as(counts)
        return dict(
            super()._merged(states),
            exponent=exponent,
            counts=counts,
            zeros=torch.stack([s['zeros'] for s in states]).sum(0),
        )


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


def _parts(samples: list[Sample]) -> Iterator[list[Sample]]:
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
