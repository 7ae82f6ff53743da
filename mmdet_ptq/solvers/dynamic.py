# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The exact optimum of one budget, by dynamic programming.

RDO-Q (Wang et al., ECCV 2022) and F-LBQ fill a table over all units and all
sums of costs. Here only sums that may lead to the optimum are held: neither
beaten by a cheaper one nor ruled out by a Lagrangian bound. So costs may be
any numbers, and what is held is small whatever their common divisor.
"""

from typing import NamedTuple

import numpy as np

from ..checks import whole
from ..errors import BudgetError
from .hull import cheapest, hull_segments, solve_hull
from .problem import ROUNDING, Bools, Floats, Ints, Problem, Resource, Solution

MAX_SUMS = 2**25
"""Sums held for all units together, of 5 bytes each."""


class Bound(NamedTuple):
    """How far from the best price a choice may be.

    At a price of a cost, every choice within the budget has at least the
    sum of the units' least priced distortions, less the priced budget. What
    it has above that are the sum of what its options miss, and the price of
    what it leaves unused. In an optimum both are together at most ``gap``,
    which some choice that was found has.

    Attributes:
        price (float): Distortion for a cost.
        missed (array): ``[U, K]``, priced distortion above the unit's least.
        gap (float): At most this.
    """

    price: float
    missed: Floats
    gap: float

    @classmethod
    def of(cls, problem: Problem, resource: Resource) -> 'Bound':
        """By the choice of :func:`solve_hull` and the price that it met."""
        price = _price(problem.distortions, resource)
        priced = problem.distortions + price * resource.costs
        least = priced.min(1, keepdims=True)
        bound = least.sum() - price * resource.limit
        found = solve_hull(problem).distortion
        doubt = ROUNDING * (np.abs(least).sum() + price * resource.limit)
        return cls(price, priced - least, float(found - bound + doubt))


def solve_dynamic(problem: Problem, max_sums: int = MAX_SUMS) -> Solution:
    """Finds the least distortion within the budget.

    Args:
        problem (Problem): With one resource.
        max_sums (int): How many sums may be held, which bounds the memory.
            Defaults to 2^25, 160 MiB.

    Returns:
        Solution: Within the budget.

    Raises:
        BudgetError: If the budget cannot be met, there are several, or more
            sums would have to be held.
        ValueError: If ``max_sums`` is no whole number above 0.
    """
    whole('max_sums', max_sums, 1)
    resource = problem.only('dp')
    problem.check_feasible()
    bound = Bound.of(problem, resource)
    kept = (bound.missed <= bound.gap) & _undominated(
        problem.distortions, resource.costs
    )
    costs = np.where(kept, resource.costs, np.inf)
    choice: Ints = costs.argmin(1)
    base = costs.min(1)
    room = resource.limit * (1 + ROUNDING) - base.sum()
    extra = np.where(kept, resource.costs - base[:, None], 0)
    free = np.flatnonzero(kept.sum(1) > 1)
    # large steps first: then what is left to add says most
    order = free[np.argsort(-extra[free].max(1), kind='stable')]
    fixed = np.setdiff1d(np.arange(len(choice)), free)
    gap = bound.gap - bound.missed[fixed, choice[fixed]].sum()
    choice[order] = _best_sum(
        kept[order],
        extra[order],
        problem.distortions[order],
        bound._replace(missed=bound.missed[order], gap=gap),
        room,
        max_sums,
    )
    return Solution.of(problem, choice, 'dp')


def _price(distortions: Floats, resource: Resource) -> float:
    """The price of a cost at which hulls come nearest to the budget."""
    costs = resource.costs
    start = cheapest(distortions, costs)
    segments = hull_segments(distortions, costs, start)
    room = resource.limit - resource.total(start)
    over = np.flatnonzero(np.cumsum(segments.cost) > room)
    return float(segments.slope[over[0]]) if len(over) else 0.0


def _undominated(distortions: Floats, costs: Floats) -> Bools:
    """Options ``[U, K]`` that no cheaper or equal one is as good as."""
    exists = np.isfinite(distortions)
    kept: Bools = exists.copy()
    index = np.arange(distortions.shape[1])
    for k in index:
        cost, loss = costs[:, k, None], distortions[:, k, None]
        same = (costs == cost) & (distortions == loss)
        beats = (costs <= cost) & (distortions <= loss) & exists
        kept[:, k] &= ~(beats & (~same | (index < k))).any(1)
    return kept


def _best_sum(
    kept: Bools,
    extra: Floats,
    distortions: Floats,
    bound: Bound,
    room: float,
    max_sums: int,
) -> Ints:
    """The optimum of units that have several options.

    Args:
        kept (array): ``[F, K]``, which options there are.
        extra (array): ``[F, K]``, their costs above the unit's cheapest.
        distortions (array): ``[F, K]``.
        bound (Bound): Of these units.
        room (float): What the extra costs may sum up to.
        max_sums (int): See :func:`solve_dynamic`.

    Returns:
        array: int64 ``[F]``.
    """
    most = extra.max(1)
    cost, loss, missed = np.zeros(1), np.zeros(1), np.zeros(1)
    came_from, held = [], 0
    for unit in range(len(kept)):
        options = np.flatnonzero(kept[unit])
        cost, loss, missed = (
            (before[:, None] + table[unit, options]).ravel()
            for before, table in (
                (cost, extra),
                (loss, distortions),
                (missed, bound.missed),
            )
        )
        unused = (room - most[unit + 1 :].sum() - cost).clip(0)
        may = (cost <= room) & (missed + bound.price * unused <= bound.gap)
        at = _front(cost, loss, np.flatnonzero(may))
        cost, loss, missed = cost[at], loss[at], missed[at]
        before, option = np.divmod(at, len(options))
        came_from.append(
            (before.astype(np.int32), options[option].astype(np.uint8))
        )
        held += len(at)
        if held > max_sums:
            raise BudgetError(
                f'the optimum needs more than {max_sums} sums of costs to be '
                "held: use method='hull', or 'milp', or a larger max_sums"
            )
    choice = np.zeros(len(kept), np.int64)
    last = len(cost) - 1  # the least distortion
    for unit in reversed(range(len(kept))):
        before, option = came_from[unit]
        choice[unit], last = option[last], before[last]
    return choice


def _front(cost: Floats, loss: Floats, at: Ints) -> Ints:
    """Of some sums those that no cheaper or equal one is as good as.

    Args:
        cost (array): ``[S]``.
        loss (array): ``[S]``.
        at (array): int64 ``[M]``, which of them.

    Returns:
        array: int64, by rising cost and falling loss.
    """
    at = at[np.lexsort((loss[at], cost[at]))]
    falling = loss[at]
    best = np.minimum.accumulate(falling)
    new = np.ones(len(at), np.bool_)
    new[1:] = falling[1:] < best[:-1]
    return at[new]
