# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges from minima and maxima."""

from typing import Any

import torch
from torch import Tensor

from ..quantizers import BaseQuantizer
from ..registry import OBSERVERS
from .base import INF, BaseObserver, State, on_cpu


def ordered_sum(values: Tensor) -> Tensor:
    """Sums float64 over the first axis, whatever the order of its terms."""
    total = torch.zeros_like(values[0])
    for term in values.sort(0).values:
        total += term
    return total


@OBSERVERS.register_module()
class MinMaxObserver(BaseObserver):
    """The extremes of all data."""

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class PerImageObserver(BaseObserver):
    """Gathers the extremes of the current image in ``now_{low,high}``."""

    def _allocate(self, rows: int) -> None:
        super()._allocate(rows)
        self.now_low, self.now_high = self.low.clone(), self.high.clone()

    def extend(self, level: int, low: Tensor, high: Tensor) -> None:
        """See the base class."""
        super().extend(level, low, high)
        self.now_low[level] = torch.minimum(self.now_low[level], low)
        self.now_high[level] = torch.maximum(self.now_high[level], high)

    def end(self) -> None:
        """Takes the extremes of the batch as one term of the average."""
        self._fold(self.now_low, self.now_high)
        self.now_low = torch.full_like(self.low, INF)
        self.now_high = torch.full_like(self.high, -INF)

    def _fold(self, low: Tensor, high: Tensor) -> None:
        """Adds an image's extremes; infinite for levels it has not."""
        raise NotImplementedError


@OBSERVERS.register_module()
class MovingAverageObserver(PerImageObserver):
    """Exponential moving average of each image's extremes (MQBench).

    It depends on the order of images by definition. Merged processes count
    by their number of images.

    Args:
        momentum (float): Weight of the newest image, in (0, 1].

    Raises:
        ValueError: If ``momentum`` is out of range.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(f'momentum must be in (0, 1], got {momentum}')
        self.momentum = momentum
        super().__init__()

    def _allocate(self, rows: int) -> None:
        super()._allocate(rows)
        shape = (2, self.levels, rows)
        self.average = torch.zeros(shape, dtype=torch.float64, device='cpu')
        self.images = torch.zeros(self.levels, dtype=torch.int64, device='cpu')

    def _fold(self, low: Tensor, high: Tensor) -> None:
        here = torch.isfinite(low).any(1)
        new, old = torch.stack([low, high]).double(), self.average
        first = (self.images == 0)[:, None]
        moved = torch.where(first, new, old + self.momentum * (new - old))
        self.average = torch.where(here[:, None], moved, old)
        self.images += here

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        low, high = self.average.to(torch.float32)
        return low, high

    def state_dict(self) -> State:
        """See the base class."""
        return dict(
            super().state_dict(),
            **on_cpu(average=self.average, images=self.images),
        )

    def load_state_dict(self, state: State) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.average = state['average'].clone()
        self.images = state['images'].clone()

    def _merged(self, states: list[State]) -> State:
        images = torch.stack([s['images'] for s in states])
        terms = torch.stack([s['average'] for s in states])
        total = ordered_sum(terms * images[:, None, :, None])
        images = images.sum(0)
        average = total / images.clamp(min=1)[:, None]
        return dict(super()._merged(states), average=average, images=images)


@OBSERVERS.register_module()
class AverageMinMaxObserver(PerImageObserver):
    """Mean over images of each image's extremes (QDrop).

    The terms are kept (8 bytes a row and image) and sorted before they are
    summed, so that neither order nor split over processes changes a bit.
    """

    def _allocate(self, rows: int) -> None:
        super()._allocate(rows)
        self.terms: list[Tensor] = []

    def _fold(self, low: Tensor, high: Tensor) -> None:
        self.terms.append(torch.stack([low, high]))

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        terms = torch.stack(self.terms).double()
        known = torch.isfinite(terms)
        total = ordered_sum(torch.where(known, terms, 0.0))
        mean = total / known.sum(0).clamp(min=1)
        low, high = mean.to(torch.float32)
        return low, high

    def state_dict(self) -> State:
        """See the base class; ``terms`` is ``[N, 2, L, K]``."""
        state: dict[str, Any] = super().state_dict()
        state['terms'] = (
            torch.stack(self.terms)
            if self.terms
            else torch.empty(0, 2, *self.low.shape)
        )
        return state

    def load_state_dict(self, state: State) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.terms = list(state['terms'].clone())

    def _merged(self, states: list[State]) -> State:
        return dict(
            super()._merged(states),
            terms=torch.cat([s['terms'] for s in states]),
        )
