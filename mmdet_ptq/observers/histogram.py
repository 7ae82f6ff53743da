# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A histogram that is a function of the data, not of their order."""

import torch
from torch import Tensor

from .base import BaseObserver, State, on_cpu
from .bins import MIN_EXPONENT, coarsen, exponents
from .counting import Sample, count, grow, in_parts
from .sampling import sample_elements

MOST_BINS, FEWEST_BINS, ALL_BINS = 1 << 14, 1 << 10, 1 << 19


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
        sample, weight = sample_elements(x, self.granularity)
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
        for part in in_parts(samples):
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
