# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every observer shares: binding, exact extremes, state and merging."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError, NumericError
from ..quantizers import BaseQuantizer, Granularity
from .sampling import row_extremes

State = dict[str, Any]
INF = float('inf')


class BaseObserver(ABC):
    """Collects a stream of tensors and gives the range to quantize them in.

    No tensor is kept. Statistics live on the CPU.

    Attributes:
        low (Tensor): float32 ``[L, K]``, exact minima; +inf where a level
            has had no data. ``[L, 0]`` before any data.
        high (Tensor): float32 ``[L, K]``, exact maxima.
        count (Tensor): int64 ``[L]``, elements observed.
    """

    def __init__(self) -> None:
        self.bind(Granularity())

    def bind(self, granularity: Granularity, levels: int = 1) -> None:
        """Says what the rows are, and forgets all data.

        Args:
            granularity (Granularity): That of the quantizer.
            levels (int): Pyramid levels with a range of their own.

        Raises:
            ValueError: If ``levels`` is not positive.
        """
        if type(levels) is not int or levels < 1:
            raise ValueError(f'levels must be a positive int, got {levels!r}')
        self.granularity = granularity
        self.levels = levels
        self.count = torch.zeros(levels, dtype=torch.int64)
        self._allocate(0)

    def _allocate(self, rows: int) -> None:
        """Makes empty statistics for K rows."""
        self.low = torch.full((self.levels, rows), INF)
        self.high = torch.full((self.levels, rows), -INF)

    @property
    def rows(self) -> int:
        """K, or 0 before any data."""
        return self.low.shape[1]

    @property
    def seen(self) -> bool:
        """Whether there has been any data."""
        return bool(self.count.any())

    @torch.no_grad()
    def observe(self, x: Tensor, level: int = 0) -> None:
        """Takes a tensor into account; empty ones are ignored.

        Args:
            x (Tensor): Floats of any shape, strides and device.
            level (int): Pyramid level; ignored where all share one range.

        Raises:
            NumericError: If ``x`` holds NaN or Inf.
            CalibrationError: If the number of channels changed.
            IndexError: If there is no such level.
            ValueError: If ``x`` is not floating-point.
        """
        if not x.is_floating_point():
            raise ValueError(f'observers take floats, got {x.dtype}')
        level = 0 if self.levels == 1 else level
        if not 0 <= level < self.levels:
            raise IndexError(f'level {level} of {self.levels}')
        if x.numel() == 0:
            return
        rows = self.granularity.num_rows(x.shape)
        if self.rows == 0:
            self._allocate(rows)
        elif rows != self.rows:
            raise CalibrationError(
                f'a tensor of shape {tuple(x.shape)} has {rows} rows to '
                f'quantize, earlier ones had {self.rows}'
            )
        x = x.detach()
        low, high = (
            t.to('cpu', torch.float32)
            for t in row_extremes(x, self.granularity)
        )
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise NumericError('an observed tensor holds NaN or Inf')
        self.count[level] += x.numel()
        self.low[level] = torch.minimum(self.low[level], low)
        self.high[level] = torch.maximum(self.high[level], high)
        self._update(x, level, low, high)

    def _update(  # noqa: B027  (nothing to add is a fair answer)
        self, x: Tensor, level: int, low: Tensor, high: Tensor
    ) -> None:
        """Adds to statistics beyond the extremes.

        Args:
            x (Tensor): As observed, not empty.
            level (int): Pyramid level.
            low (Tensor): ``[K]``, the minima of ``x``.
            high (Tensor): ``[K]``, the maxima of ``x``.
        """

    def end_image(self) -> None:  # noqa: B027
        """Marks the end of a calibration batch."""

    def why_not(self, quantizer: BaseQuantizer) -> str:
        """Why it gives no ranges for a quantizer, '' if it does."""
        return ''

    def ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        """The range found for each level and row.

        Args:
            quantizer (BaseQuantizer): Whose range it will be.

        Returns:
            tuple[Tensor, Tensor]: float32 ``[L, K]`` low and high. A level
            without data gets the union of the others.

        Raises:
            CalibrationError: If there has been no data at all.
        """
        if not self.seen:
            raise CalibrationError('an observer has seen no data')
        self.end_image()
        low, high = (t.clone() for t in self._ranges(quantizer))
        empty = self.count == 0
        low[empty] = low[~empty].amin(0)
        high[empty] = high[~empty].amax(0)
        return low, high

    @abstractmethod
    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        """Ranges ``[L, K]``; those of levels without data are ignored."""

    def state_dict(self) -> State:
        """All data as plain tensors, to resume and to merge."""
        self.end_image()
        return dict(
            low=self.low.clone(),
            high=self.high.clone(),
            count=self.count.clone(),
        )

    def load_state_dict(self, state: State) -> None:
        """Replaces the data by that of a state.

        Raises:
            CalibrationError: If the state is of another number of levels.
        """
        if state['count'].shape[0] != self.levels:
            raise CalibrationError(
                f'the state has {state["count"].shape[0]} levels, the '
                f'observer has {self.levels}'
            )
        self._allocate(state['low'].shape[1])
        self.low = state['low'].clone()
        self.high = state['high'].clone()
        self.count = state['count'].clone()

    def merge(self, other_states: list[State]) -> None:
        """Adds the data of other processes; their order does not matter.

        Raises:
            CalibrationError: If levels or rows differ.
        """
        states = [
            s for s in [self.state_dict(), *other_states] if s['low'].shape[1]
        ]
        if not states:
            return
        shapes = {tuple(s['low'].shape) for s in states}
        if len(shapes) > 1 or states[0]['low'].shape[0] != self.levels:
            raise CalibrationError(
                f'states of different shapes [levels, rows]: {shapes}'
            )
        self.load_state_dict(self._merged(states))

    def _merged(self, states: list[State]) -> State:
        """Combines states of equal shape, not empty."""
        return dict(
            low=torch.stack([s['low'] for s in states]).amin(0),
            high=torch.stack([s['high'] for s in states]).amax(0),
            count=torch.stack([s['count'] for s in states]).sum(0),
        )
