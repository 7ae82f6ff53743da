# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every observer shares: binding, exact extremes, state and merging."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError, NumericError
from ..quantizers import BaseQuantizer, Granularity
from .batch import Seen, end_batch, ranges_of
from .sampling import row_extremes

State = dict[str, Any]
INF = float('inf')


class BaseObserver(ABC):
    """Collects a stream of tensors and gives the range to quantize them in.

    What a batch adds is taken in when it ends, by :func:`end_batch` or
    :meth:`end_image`, so that a GPU is asked once for all observers; until
    then, and no longer, samples are kept. Extremes and what is made of them
    is small and stays on the CPU, histograms where the data is.

    Attributes:
        low (Tensor): float32 ``[L, K]``, exact minima; +inf where a level
            has had no data. ``[L, 0]`` before any data.
        high (Tensor): float32 ``[L, K]``, exact maxima.
        count (Tensor): int64 ``[L]``, elements observed.
        device (torch.device): Where the data last was, or will be.
    """

    def __init__(self) -> None:
        self.bind(Granularity())

    def bind(
        self,
        granularity: Granularity,
        levels: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """Says what the rows are, and forgets all data.

        Args:
            granularity (Granularity): That of the quantizer.
            levels (int): Pyramid levels with a range of their own.
            device (torch.device, optional): Where the data will be, and
                what is loaded or merged before there is any. The CPU by
                default.

        Raises:
            ValueError: If ``levels`` is not positive.
        """
        if type(levels) is not int or levels < 1:
            raise ValueError(f'levels must be a positive int, got {levels!r}')
        self.granularity = granularity
        self.levels = levels
        self.count = torch.zeros(levels, dtype=torch.int64, device='cpu')
        self.device = self.count.device if device is None else device
        self._waiting: list[Seen] = []
        self._allocate(0)

    def _allocate(self, rows: int) -> None:
        """Makes empty statistics for K rows."""
        shape = (self.levels, rows)
        self.low = torch.full(shape, INF, device='cpu')
        self.high = torch.full(shape, -INF, device='cpu')

    @property
    def counted(self) -> Granularity:
        """Says of which rows extremes are kept: those of the quantizer."""
        return self.granularity

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
        rows = self.counted.num_rows(x.shape)
        if rows != self.rows:
            if self.rows:
                raise CalibrationError(
                    f'a tensor of shape {tuple(x.shape)} has {rows} rows to '
                    f'quantize, earlier ones had {self.rows}'
                )
            self._allocate(rows)
        x = x.detach()
        self.device = x.device
        self.count[level] += x.numel()
        low, high = row_extremes(x, self.counted)
        self._waiting.append(Seen(level, low, high, self._keep(x)))

    def _keep(self, x: Tensor) -> Any:
        """What is kept of a tensor until the batch ends, as a copy.

        Args:
            x (Tensor): As observed, not empty.
        """
        return None

    def give(self) -> list[Seen]:
        """What has come since the last batch ended; forgets it."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def extend(self, level: int, low: Tensor, high: Tensor) -> None:
        """Takes the extremes of a tensor in.

        Args:
            level (int): Pyramid level.
            low (Tensor): Finite float32 ``[K]``, on the CPU.
            high (Tensor): Of that shape.
        """
        lowest, highest = self.low[level], self.high[level]
        torch.minimum(lowest, low, out=lowest)
        torch.maximum(highest, high, out=highest)

    @classmethod
    def add_kept(cls, kept: list[tuple[Any, int, Any]]) -> None:
        """Takes in what was kept of a batch, of all observers of a class.

        Args:
            kept (list[tuple]): Observer, level, and what :meth:`_keep` gave.
        """
        return None

    def end(self) -> None:  # noqa: B027
        """What is done at the end of a batch that brought data."""

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
            tuple[Tensor, Tensor]: float32 ``[L, K]`` low and high, on the
            CPU. A level without data gets the union of the others.

        Raises:
            CalibrationError: If there has been no data at all.
        """
        (found,) = ranges_of([(self, quantizer)])
        return found

    @abstractmethod
    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        """Ranges ``[L, K]``; those of levels without data are ignored."""

    @classmethod
    def find_ranges(
        cls, pairs: Sequence[tuple[Any, BaseQuantizer]]
    ) -> list[tuple[Tensor, Tensor]]:
        """What :meth:`_ranges` gives, for many observers of the class."""
        return [one._ranges(quantizer) for one, quantizer in pairs]

    def known_levels(self) -> list[int]:
        """Levels that have had data."""
        return [i for i, count in enumerate(self.count.tolist()) if count]

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
        self._waiting = []
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


def on_cpu(**tensors: Tensor) -> State:
    """Copies of tensors on the CPU."""
    return {n: t.to('cpu', copy=True) for n, t in tensors.items()}
