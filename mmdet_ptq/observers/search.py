# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Search for the range that quantizes weighted points best."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..quantizers import BaseQuantizer, Ranges, Searchable
from ..quantizers.points import power_

#: elements worked on at once: 256 KiB of float32, in a core's L2 cache; of a
#: GPU its memory is the bound
BLOCK, GPU_BLOCK = 1 << 16, 1 << 25

LIMIT = torch.finfo(torch.float32).max

Error = Callable[[Tensor, Tensor], Tensor]


def block(x: Tensor) -> int:
    """Elements that are worked on at once where a tensor is."""
    return BLOCK if x.is_cpu else GPU_BLOCK


class GridError:
    """Weighted p-norm error of points under candidate ranges.

    Args:
        quantizer (BaseQuantizer): A :class:`Searchable` one.
        points (Tensor): float32 ``[K, B]``.
        weights (Tensor, optional): float32 ``[K, B]``, or ``[B]`` for every
            row; 1 by default.
        p (float): Exponent of the error.
        first (int): Which row of the quantizer the first point row is.

    Raises:
        ValueError: If the quantizer cannot be searched.
    """

    def __init__(
        self,
        quantizer: BaseQuantizer,
        points: Tensor,
        weights: Tensor | None,
        p: float,
        first: int = 0,
    ) -> None:
        if not isinstance(quantizer, Searchable):
            raise ValueError(
                f'a {type(quantizer).__name__} is not Searchable: '
                'its range cannot be searched for'
            )
        self.quantizer = quantizer
        self.points = points
        self.weights = weights
        self.p = p
        self.first = first

    def __call__(self, low: Tensor, high: Tensor) -> Tensor:
        """Errors ``[K, C]`` of candidates ``[K, C]``."""
        rows, candidates = low.shape
        size = max(1, self.points.shape[1])
        out = low.new_empty(rows, candidates)
        most = block(self.points)
        few = max(1, most // size)
        for i in range(0, rows, few):
            r = slice(i, min(i + few, rows))
            step = max(1, most // (size * (r.stop - r.start)))
            for j in range(0, candidates, step):
                c = slice(j, j + step)
                out[r, c] = self._block(r, low[r, c], high[r, c])
        return out

    def _block(self, rows: slice, low: Tensor, high: Tensor) -> Tensor:
        x = self.points[rows]
        at = slice(self.first + rows.start, self.first + rows.stop)
        y = self.quantizer.of_rows(at).trial(x, Ranges(low, high))
        y = power_(y.sub_(x.unsqueeze(1)), self.p)
        if self.weights is None:
            return y.sum(-1)
        if self.weights.dim() == 1:
            return y @ self.weights
        return y.mul_(self.weights[rows].unsqueeze(1)).sum(-1)


class BestRange:
    """The best range of each row so far; at first the full range.

    Args:
        error (Error): Errors of candidates ``[K, C]``.
        low (Tensor): ``[K]``, at most 0.
        high (Tensor): ``[K]``, at least 0.
    """

    def __init__(self, error: Error, low: Tensor, high: Tensor) -> None:
        self.error = error
        self.full = low, high
        self.low, self.high = low, high
        self.least = error(low[:, None], high[:, None])[:, 0]

    def attempt(self, t: Tensor, move_low: bool, move_high: bool) -> Tensor:
        """Tries fractions ``t^2`` of the full range at the moved ends.

        Args:
            t (Tensor): ``[1, C]``, or ``[K, C]``.
            move_low (bool): Whether the low end moves.
            move_high (bool): Whether the high end moves.

        Returns:
            Tensor: ``[K, 1]``, the t of least error in each row.
        """
        t = t.clamp(min=0.0).expand(self.low.shape[0], -1)
        fraction = t.square()
        low, high = (
            (end[:, None] * fraction).clamp(-LIMIT, LIMIT)
            if move
            else now[:, None].expand_as(t)
            for end, now, move in zip(
                self.full,
                (self.low, self.high),
                (move_low, move_high),
                strict=True,
            )
        )
        least, at = self.error(low, high).min(1, keepdim=True)
        won = least[:, 0] < self.least
        self.low = torch.where(won, low.gather(1, at)[:, 0], self.low)
        self.high = torch.where(won, high.gather(1, at)[:, 0], self.high)
        self.least = torch.where(won, least[:, 0], self.least)
        return t.gather(1, at)

    def line(self, steps: int, move_low: bool, move_high: bool) -> None:
        """Searches coarsely, then between the neighbours of the best.

        Equal steps of t, not of the fraction, are fine where outliers ask
        for a small fraction, and coarse near 1 where the error is flat.
        """
        device = self.low.device
        grid = coarse_grid(steps, device)
        if not (move_low and move_high):
            grid = torch.cat([grid, grid.new_zeros(1, 1)], 1)
        t = self.attempt(grid, move_low, move_high)
        self.attempt(t + fine(device) / steps, move_low, move_high)


@lru_cache(maxsize=8)
def fine(device: torch.device) -> Tensor:
    """Where to look between a coarse candidate and its neighbours."""
    above = torch.arange(1.0, 4.0, device=device)[None] / 4
    return torch.cat([-above.flip(1), above], 1)


def coarse_grid(steps: int, device: torch.device) -> Tensor:
    """``[1, steps + 1]`` values of t from ``1 + 1 / steps`` down.

    Slightly more than the data's range can be best: it moves the zero point,
    and with it the grid under a peak such as SiLU's minimum.
    """
    return torch.arange(steps + 1, 0, -1.0, device=device)[None] / steps


def shrink_search(
    error: Error,
    low: Tensor,
    high: Tensor,
    steps: int,
    two_ends: bool,
    rounds: int = 2,
) -> tuple[Tensor, Tensor]:
    """Shrinks, or slightly widens, ranges until the error is least.

    Both ends together first and then, with ``two_ends``, low and high in
    turn. The full range is a candidate, so the result is never worse.

    Args:
        error (Error): Errors of candidates ``[K, C]``.
        low (Tensor): ``[K]``, at most 0.
        high (Tensor): ``[K]``, at least 0.
        steps (int): Candidates of a line before refinement.
        two_ends (bool): Whether to shrink the ends apart.
        rounds (int): How often each end has its turn.

    Returns:
        tuple[Tensor, Tensor]: Low and high, ``[K]`` each.
    """
    best = BestRange(error, low, high)
    best.line(steps, True, True)
    if two_ends:
        for _ in range(rounds):
            best.line(steps, False, True)
            best.line(steps, True, False)
    return best.low, best.high
