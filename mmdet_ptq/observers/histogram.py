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

    def _grow(self, level: int) -> None:
        """Has the bins of a level hold the extremes."""
        low, high = self.low[level], self.high[level]
        reach = power_of_two(self.exponent[level]) * self.half
        if bool(((low < -reach) | (high >= reach)).any()):
            self._rescale(level)

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
        for one, level in {(s.observer, s.level): None for s in samples}:
            one._move(samples[0].values.device)
            one._grow(level)
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
    for sample in samples:
        size = sum(s.values.numel() for s in part) + sample.values.numel()
        if part and (sample.values.is_cpu or size > TOGETHER):
            yield part
            part = []
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
    begin, bins = {}, 0
    for one, level, _, _ in samples:
        if (one, level) not in begin:
            begin[one, level] = bins
            bins += one.rows * 2 * one.half
    values = torch.cat([s.values.reshape(-1) for s in samples])
    table = [_rows(s, begin[s.observer, s.level]) for s in samples]
    factor, zero, size, weight = torch.cat(table, 1).to(
        values.device, non_blocking=True
    )
    row = torch.arange(len(size), device=values.device)
    row = row.repeat_interleave(size.long(), output_size=len(values))
    index = (values * factor[row]).floor_().add_(zero[row]).long()
    weight = weight.long()[row]
    counts = weight.new_zeros(bins).index_add_(0, index, weight)
    weight = torch.where(values == 0, weight, 0)
    zeros = weight.new_zeros(len(size)).index_add_(0, row, weight)
    parts = zeros.split([s.observer.rows for s in samples])
    for (one, level, _, _), part in zip(samples, parts, strict=True):
        one.zeros[level] += part
    for (one, level), at in begin.items():
        own = one.counts[level]
        own += counts[at : at + own.numel()].view_as(own)


def _rows(sample: Sample, begin: int) -> Tensor:
    """Of each row its factor, bin of zero, number of values, their weight.

    Args:
        sample (Sample): Of K rows.
        begin (int): Where the bins of its histogram are.

    Returns:
        Tensor: float64 ``[4, K]`` on the CPU.
    """
    one, level, values, weight = sample
    row = torch.arange(one.rows, dtype=torch.float64, device='cpu')
    return torch.stack(
        [
            power_of_two(-one.exponent[level]),
            row * 2 * one.half + (begin + one.half),
            torch.full_like(row, values.shape[1]),
            torch.full_like(row, weight),
        ]
    )
