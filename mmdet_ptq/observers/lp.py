# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges of least p-norm quantization error."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import number, one_of, whole
from ..quantizers import BaseQuantizer, FitsPoints, Searchable
from ..registry import OBSERVERS
from .histogram import HistogramObserver
from .points import points_of
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
    every pair of scale and zero point. A quantizer that cannot be searched
    but fits points gets the extremes, and the histogram for its fit.

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
        """See the base class: it tries ranges, or gives points."""
        if isinstance(quantizer, Searchable | FitsPoints):
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
        self.end_image()
        other = copy.copy(self)
        other.p = p
        return other

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        (found,) = self.find_ranges([(self, quantizer)])
        return found

    @classmethod
    def find_ranges(
        cls, pairs: Sequence[tuple['LpObserver', BaseQuantizer]]
    ) -> list[tuple[Tensor, Tensor]]:
        """See the base class: what has one grid is searched at once."""
        found = []
        lines: dict[tuple, list[tuple[int, int]]] = {}
        for i, (one, quantizer) in enumerate(pairs):
            shape, device = one.low.shape, one.counts.device
            found.append(tuple(torch.zeros(2, *shape, device=device)))
            if not isinstance(quantizer, Searchable):
                found[-1] = (one.low, one.high)
                continue
            for level in one.known_levels():
                key = one._line(quantizer, level)
                # a core's cache holds one histogram
                alone = (i, level) if one.counts.is_cpu else ()
                lines.setdefault((*key, *alone), []).append((i, level))
        for at in lines.values():
            one, quantizer = pairs[at[0][0]]
            most = max(1, block(one.counts) // one.counts[0].numel())
            for part in (at[j : j + most] for j in range(0, len(at), most)):
                some = [(pairs[i][0], level) for i, level in part]
                ends = zip(*search_levels(some, quantizer), strict=True)
                for (i, level), (low, high) in zip(part, ends, strict=True):
                    found[i][0][level], found[i][1][level] = low, high
        return found

    def _line(self, quantizer: BaseQuantizer, level: int) -> tuple:
        """What levels have in common that can be searched at once."""
        return (
            quantizer.settings(),
            self.counts.shape[1:],
            self.p,
            self.search,
            self.steps,
            self._two_ends(quantizer, level),
        )

    def _two_ends(self, quantizer: BaseQuantizer, level: int) -> bool:
        low, high = self.low[level], self.high[level]
        return self.search == '2d' or (
            self.search == 'auto'
            and not quantizer.symmetric
            and bool(((low < 0) & (high > 0)).any())
        )

    def points(self, bits: int, level: int) -> tuple[Tensor, Tensor]:
        """Points that stand for the data of each row, and their shares.

        Args:
            bits (int): Width of the grid that they are for.
            level (int): Pyramid level.

        Returns:
            tuple[Tensor, Tensor]: Points, shape (rows, B), and shares of a
            row's mass, of the same shape.
        """
        self.end_image()
        points, share = points_of([(self, level)], bits)
        return points[0], share[0]


def search_levels(
    some: Sequence[tuple[LpObserver, int]], quantizer: BaseQuantizer
) -> tuple[Tensor, Tensor]:
    """Ranges of levels whose search has the same steps.

    Args:
        some (Sequence[tuple]): N observers and levels, of K rows each.
        quantizer (BaseQuantizer): Gives the grid.

    Returns:
        tuple[Tensor, Tensor]: Low and high ``[N, K]``, where the
        histograms are.
    """
    one, level = some[0]
    points, share = points_of(some, quantizer.bits)
    ends = torch.stack(
        [
            torch.stack([o.low[i].clamp(max=0.0), o.high[i].clamp(min=0.0)])
            for o, i in some
        ],
        1,
    )
    low, high = ends.flatten(1).to(points.device, non_blocking=True)
    weights = share.flatten(0, 1)
    if len(weights) == 1:
        weights = weights[0]
    error = GridError(quantizer, points.flatten(0, 1), weights, one.p)
    # a few hundred rows have to share the time of one
    steps = one.steps if one.rows <= 4 else -(-one.steps // 4)
    if one.search == 'upper':
        best = BestRange(error, low, high)
        best.line(steps, False, True)
        low, high = best.low, best.high
    else:
        two_ends = one._two_ends(quantizer, level)
        low, high = shrink_search(error, low, high, steps, two_ends)
    return low.view(ends.shape[1:]), high.view(ends.shape[1:])


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
            i,
        )
    return low, high


def _search_rows(
    x: Tensor,
    quantizer: BaseQuantizer,
    p: float,
    steps: int,
    index: Tensor,
    stands_for: int,
    first: int,
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
    rough = BestRange(
        GridError(quantizer, points, weights, p, first), low, high
    )
    t = rough.attempt(coarse_grid(steps, x.device), True, True)
    best = BestRange(GridError(quantizer, x, None, p, first), low, high)
    near = torch.cat([x.new_zeros(1, 1), fine(x.device)], 1)
    best.attempt(t + near / steps, True, True)
    return best.low, best.high
