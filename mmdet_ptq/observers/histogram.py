# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A histogram that is a function of the data, not of their order."""

import torch
from torch import Tensor

from .base import BaseObserver, State, on_cpu
from .sampling import sample_rows

# Below the exponent of the smallest bin of the smallest subnormal float32.
MIN_EXPONENT = -170
MOST_BINS, FEWEST_BINS, ALL_BINS = 1 << 14, 1 << 10, 1 << 19


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

    def _allocate(self, rows: int, device: torch.device) -> None:
        super()._allocate(rows, device)
        share = 1 << (ALL_BINS // max(1, rows)).bit_length() - 1
        bins = max(FEWEST_BINS, min(MOST_BINS, share))
        shape = (self.levels, rows)
        self.counts = torch.zeros(
            (*shape, bins), dtype=torch.int64, device=device
        )
        self.zeros = torch.zeros(shape, dtype=torch.int64, device=device)
        self.exponent = torch.full(
            shape, MIN_EXPONENT, dtype=torch.int32, device=device
        )
        self._samples: list[tuple[int, Tensor, int]] = []

    @property
    def half(self) -> int:
        """Number of bins on either side of zero."""
        return self.counts.shape[-1] // 2

    def _update(
        self, x: Tensor, level: int, low: Tensor, high: Tensor
    ) -> None:
        sample, weight = sample_rows(x, self.granularity)
        # a copy: what follows may work in place on what was observed
        sample = sample.to(torch.float32, copy=True)
        self._samples.append((level, sample, weight))

    def signals(self) -> Tensor:
        """See the base class: also of each level whether its bins grow."""
        grown = exponents(self.low, self.high, self.half) > self.exponent
        return torch.cat([super().signals(), grown.any(1)])

    def _settle(self, signals: list[bool]) -> None:
        for level, grown in enumerate(signals):
            if grown:
                self._rescale(level)
        for level, sample, weight in self._samples:
            self._count(level, sample.to(torch.float64), weight)
        self._samples = []

    def _rescale(self, level: int) -> None:
        exponent = exponents(self.low[level], self.high[level], self.half)
        by = exponent - self.exponent[level]
        # of all rows: to pick some, a GPU would have to be waited for
        rows = by > 0 if by.is_cpu else slice(None)
        self.counts[level, rows] = coarsen(self.counts[level, rows], by[rows])
        self.exponent[level] = exponent

    def _count(self, level: int, sample: Tensor, weight: int) -> None:
        """Adds a sample ``[K, S]``, each element as often as ``weight``."""
        # exact: a float32 times a power of two, in float64
        factor = power_of_two(-self.exponent[level])
        index = (sample * factor[:, None]).floor_().to(torch.int64)
        rows = torch.arange(self.rows, device=index.device)
        index += (rows * 2 * self.half + self.half)[:, None]
        index = index.reshape(-1)
        one = torch.full((1,), weight, device=index.device)
        counts = self.counts[level].view(-1)
        counts.index_add_(0, index, one.expand_as(index))
        self.zeros[level] += (sample == 0).sum(1) * weight

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
