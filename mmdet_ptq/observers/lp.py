# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges of least p-norm quantization error."""

import copy

import torch
from torch import Tensor

from ..checks import number, one_of, whole
from ..quantizers import BaseQuantizer, Searchable
from ..registry import OBSERVERS
from .histogram import HistogramObserver, coarsen, power_of_two
from .sampling import jittered_index
from .search import (
    BestRange,
    GridError,
    block,
    coarse_grid,
    fine,
    shrink_search,
)

SEARCHES = ('auto', '1d', '2d', 'upper')
#: weights a row that the coarse search looks at, more for few rows
WEIGHT_SAMPLE = 510


def _check(p: float, steps: int) -> None:
    number('p', p, above=True)
    whole('steps', steps, 2)


@OBSERVERS.register_module()
class LpObserver(HistogramObserver):
    """The range with the least ``mean |x - q(x)|^p``, on a histogram.

    QDrop's search, with coordinate descent over the two ends in place of
    every pair of scale and zero point.

    Args:
        p (float): Exponent, positive.
        search (str): ``'1d'`` shrinks both ends by one fraction, ``'2d'``
            each by its own, ``'upper'`` the upper one only (Q-YOLO: the
            minimum of SiLU stays). ``'auto'``: 1d for a symmetric quantizer
            or one-sided data, else 2d.
        steps (int): Candidates of one line of the search.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self, p: float = 2.4, search: str = 'auto', steps: int = 100
    ) -> None:
        _check(p, steps)
        self.search = one_of('search', search, SEARCHES)
        self.p, self.steps = p, steps
        super().__init__()

    def why_not(self, quantizer: BaseQuantizer) -> str:
        """See the base class: it tries ranges."""
        if isinstance(quantizer, Searchable):
            return ''
        return (
            f'an LpObserver tries ranges, and a {type(quantizer).__name__} '
            'is not Searchable; use another observer, e.g. '
            "dict(type='MinMaxObserver')"
        )

    def with_exponent(self, p: float) -> 'LpObserver':
        """This observer at another exponent; both share the data.

        Raises:
            ValueError: If ``p`` is not positive.
        """
        _check(p, self.steps)
        other = copy.copy(self)
        other.p = p
        return other

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        low, high = torch.zeros_like(self.low), torch.zeros_like(self.high)
        for level in self.count.nonzero()[:, 0].tolist():
            low[level], high[level] = self._search(quantizer, level)
        return low, high

    def _search(
        self, quantizer: BaseQuantizer, level: int
    ) -> tuple[Tensor, Tensor]:
        low = self.low[level].clamp(max=0.0)
        high = self.high[level].clamp(min=0.0)
        two_sided = bool(((low < 0) & (high > 0)).any())
        two_ends = self.search == '2d' or (
            self.search == 'auto' and two_sided and not quantizer.symmetric
        )
        points, weights = self.points(quantizer.bits, level)
        if self.rows == 1:
            weights = weights[0]
        error = GridError(quantizer, points, weights, self.p)
        # a few hundred rows have to share the time of one
        steps = self.steps if self.rows <= 4 else -(-self.steps // 4)
        if self.search == 'upper':
            best = BestRange(error, low, high)
            best.line(steps, False, True)
            return best.low, best.high
        return shrink_search(error, low, high, steps, two_ends)

    def points(self, bits: int, level: int) -> tuple[Tensor, Tensor]:
        """Points that stand for the data of each row, and their shares.

        The grid's steps have to be several points wide, or the error would
        tell more of the bins than of the data: bins are split, or merged to
        save time, to about 8 points for each of the ``2^bits`` codes.

        Args:
            bits (int): Width of the grid that they are for.
            level (int): Pyramid level.

        Returns:
            tuple[Tensor, Tensor]: Points, shape (rows, B), and shares of a
            row's mass, of the same shape.
        """
        wanted = max(1024, 1 << bits + 3) if self.rows <= 16 else 512
        counts = self.counts[level].clone()
        # zeros are represented exactly, wherever the centre of their bin is
        counts[:, self.half] -= self.zeros[level]
        exponent = self.exponent[level]
        used = (counts > 0).any(0).nonzero()[:, 0]
        while len(used) > 2 * wanted:
            counts = coarsen(counts, torch.ones_like(exponent))
            exponent = exponent + 1
            used = (counts > 0).any(0).nonzero()[:, 0]
        parts = max(1, min(8, wanted // max(1, len(used))))
        inside = torch.arange(parts, dtype=torch.float64, device=counts.device)
        inside = (inside + 0.5) / parts
        place = ((used - self.half)[:, None] + inside).reshape(-1)
        points = power_of_two(exponent)[:, None] * place
        points = points.to(torch.float32)
        # the outermost bins reach beyond the data
        points = points.maximum(self.low[level, :, None])
        points = points.minimum(self.high[level, :, None])
        total = self.counts[level].sum(1, keepdim=True).clamp(min=1) * parts
        share = (counts[:, used] / total.double()).to(torch.float32)
        return points, share.repeat_interleave(parts, 1)


@torch.no_grad()
def search_weight_range(
    weight: Tensor, quantizer: BaseQuantizer, p: float = 2.0, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Shrinks each row's range to the least ``sum |w - q(w)|^p``.

    Long rows are searched coarsely on a sample and their extremes; the
    refinement, which also compares with the full range, sees all weights.

    Args:
        weight (Tensor): Floats, any shape.
        quantizer (BaseQuantizer): Gives rows and grid; its state is neither
            read nor changed.
        p (float): Exponent, positive.
        steps (int): Resolution of the search.

    Returns:
        tuple[Tensor, Tensor]: float32 low and high, ``[K]`` each, on the
        device of ``weight``.

    Raises:
        ValueError: If ``p`` or ``steps`` is out of range.
    """
    _check(p, steps)
    rows = quantizer.granularity.rows(weight.detach())
    k, m = rows.shape
    low, high = torch.zeros(2, k, device=weight.device)
    if m == 0:
        return low, high
    index, stands_for = torch.arange(m, device=weight.device), 1
    sample = max(WEIGHT_SAMPLE, (1 << 18) // k)
    if m > sample:
        index, stands_for = jittered_index(m, sample, weight.device)
    few = max(1, block(weight) // (len(index) + 2))
    for i in range(0, k, few):
        r = slice(i, i + few)
        low[r], high[r] = _search_rows(
            rows[r].to(torch.float32),
            quantizer,
            p,
            -(-steps // 5),
            index,
            stands_for,
        )
    return low, high


def _search_rows(
    x: Tensor,
    quantizer: BaseQuantizer,
    p: float,
    steps: int,
    index: Tensor,
    stands_for: int,
) -> tuple[Tensor, Tensor]:
    """Ranges of a few rows ``[K, M]``; see :func:`search_weight_range`."""
    low, high = x.amin(1), x.amax(1)
    points, weights = x, None
    if stands_for > 1:
        points = torch.cat(
            [x.index_select(1, index), low[:, None], high[:, None]], 1
        )
        weights = points.new_full((points.shape[1],), float(stands_for))
        weights[-2:] = 1.0
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    rough = BestRange(GridError(quantizer, points, weights, p), low, high)
    t = rough.attempt(coarse_grid(steps, x.device), True, True)
    best = BestRange(GridError(quantizer, x, None, p), low, high)
    near = torch.cat([x.new_zeros(1, 1), fine(x.device)], 1)
    best.attempt(t + near / steps, True, True)
    return best.low, best.high
