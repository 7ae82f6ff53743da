# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every observer shares: binding, exact extremes, state and merging."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    Statistics live where the data is. What a batch adds is taken in when it
    ends, by :func:`end_batch` or :meth:`end_image`, so that a GPU is asked
    once for all observers; until then, and no longer, samples are kept.

    Attributes:
        low (Tensor): float32 ``[L, K]``, exact minima; +inf where a level
            has had no data. ``[L, 0]`` before any data.
        high (Tensor): float32 ``[L, K]``, exact maxima.
        count (Tensor): int64 ``[L]``, elements observed, on the CPU.
        waiting (bool): Whether there has been data since the last batch
            ended.
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
        self.waiting = False
        self._allocate(0, torch.device('cpu'))

    def _allocate(self, rows: int, device: torch.device) -> None:
        """Makes empty statistics for K rows."""
        shape = (self.levels, rows)
        self.low = torch.full(shape, INF, device=device)
        self.high = torch.full(shape, -INF, device=device)

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

        NaN and Inf are told when the batch ends.

        Raises:
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
            self._allocate(rows, x.device)
        elif rows != self.rows:
            raise CalibrationError(
                f'a tensor of shape {tuple(x.shape)} has {rows} rows to '
                f'quantize, earlier ones had {self.rows}'
            )
        x = x.detach()
        if self.low.device != x.device:  # after a resume
            self._move(x.device)
        low, high = (
            t.to(torch.float32) for t in row_extremes(x, self.granularity)
        )
        self.waiting = True
        self.count[level] += x.numel()
        self.low[level] = torch.minimum(self.low[level], low)
        self.high[level] = torch.maximum(self.high[level], high)
        self._update(x, level, low, high)

    def _move(self, device: torch.device) -> None:
        """Takes all statistics but ``count`` to another device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name != 'count':
                setattr(self, name, value.to(device))

    def _update(  # noqa: B027  (nothing to add is a fair answer)
        self, x: Tensor, level: int, low: Tensor, high: Tensor
    ) -> None:
        """Adds to statistics beyond the extremes.

        Args:
            x (Tensor): As observed, not empty; what is kept of it has to be
                a copy.
            level (int): Pyramid level.
            low (Tensor): ``[K]``, the minima of ``x``.
            high (Tensor): ``[K]``, the maxima of ``x``.
        """

    def signals(self) -> Tensor:
        """What the CPU has to know before the batch is taken in.

        Returns:
            Tensor: bool ``[1 + F]``: whether there is NaN or Inf, and what
            a subclass adds for :meth:`_settle`.
        """
        off = self.low.isnan() | self.high.isnan()
        return (off | (self.low == -INF) | (self.high == INF)).any()[None]

    def settle(self, signals: list[bool]) -> bool:
        """Takes the batch in.

        Args:
            signals (list[bool]): What :meth:`signals` gave.

        Returns:
            bool: False if there was NaN or Inf.
        """
        self.waiting = False
        if not signals[0]:
            self._settle(signals[1:])
        return not signals[0]

    def _settle(self, signals: list[bool]) -> None:  # noqa: B027
        """What a subclass does at the end of a batch."""

    def end_image(self) -> None:
        """Marks the end of a calibration batch.

        Raises:
            NumericError: If it held NaN or Inf.
        """
        if end_batch([self]):
            raise NumericError('an observed tensor holds NaN or Inf')

    def why_not(self, quantizer: BaseQuantizer) -> str:
        """Why it gives no ranges for a quantizer, '' if it does."""
        return ''

    def ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        """The range found for each level and row.

        Args:
            quantizer (BaseQuantizer): Whose range it will be.

        Returns:
            tuple[Tensor, Tensor]: float32 ``[L, K]`` low and high, where
            the data was. A level without data gets the union of the others.

        Raises:
            CalibrationError: If there has been no data at all.
        """
        if not self.seen:
            raise CalibrationError('an observer has seen no data')
        self.end_image()
        low, high = (t.clone() for t in self._ranges(quantizer))
        known = self.count.nonzero()[:, 0].tolist()
        for level in set(range(self.levels)) - set(known):
            low[level] = low[known].amin(0)
            high[level] = high[known].amax(0)
        return low, high

    @abstractmethod
    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        """Ranges ``[L, K]``; those of levels without data are ignored."""

    def state_dict(self) -> State:
        """All data as plain tensors on the CPU, to resume and to merge."""
        self.end_image()
        return on_cpu(low=self.low, high=self.high, count=self.count)

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
        self._allocate(state['low'].shape[1], torch.device('cpu'))
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


def end_batch(observers: Sequence[BaseObserver]) -> list[BaseObserver]:
    """Ends a calibration batch for many observers.

    A GPU is waited for once.

    Args:
        observers (Sequence[BaseObserver]): Those of one device.

    Returns:
        list[BaseObserver]: Those that were given NaN or Inf.
    """
    waiting = [one for one in observers if one.waiting]
    if not waiting:
        return []
    parts = [one.signals() for one in waiting]
    told, strange = torch.cat(parts).tolist(), []
    for one, part in zip(waiting, parts, strict=True):
        signals, told = told[: len(part)], told[len(part) :]
        if not one.settle(signals):
            strange.append(one)
    return strange


def on_cpu(**tensors: Tensor) -> State:
    """Copies of tensors on the CPU."""
    return {n: t.to('cpu', copy=True) for n, t in tensors.items()}
