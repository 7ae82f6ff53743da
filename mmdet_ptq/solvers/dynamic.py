# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The exact optimum of one budget, by dynamic programming.

A table over all units and all sums of costs, as in RDO-Q (Wang et al., ECCV
2022), but exact and small: sums are counted in the greatest common divisor
of the costs, and options that a Lagrangian bound shows to be in no optimum
are dropped before, which leaves most units one option.
"""

import numpy as np

from ..errors import BudgetError
from .hull import cheapest, hull_segments, solve_hull
from .problem import Bools, Floats, Ints, Problem, Resource

MAX_TABLE = 2**29
"""Bytes of the table that says which options led to a sum."""
WHOLE = 2.0**53


def solve_dynamic(problem: Problem, max_table: int = MAX_TABLE) -> Ints:
    """Finds the least distortion within the budget.

    Args:
        problem (Problem): With one resource, whose costs are whole numbers.
        max_table (int): Bytes that the table may take. Defaults to 512 MiB.

    Returns:
        array: int64 ``[U]``, within the budget.

    Raises:
        BudgetError: If the budget cannot be met, there are several, costs
            are no whole numbers, or the table would be too large.
    """
    resource = problem.only('dp')
    problem.check_feasible()
    _check_whole(resource)
    kept = _worth_trying(problem, resource)
    costs = np.where(kept, resource.costs, np.inf)
    base = costs.min(1)
    choice: Ints = costs.argmin(1)
    free = np.flatnonzero(kept.sum(1) > 1)
    if not len(free):
        return choice
    extra = np.where(kept, resource.costs - base[:, None], 0)[free]
    step = int(np.gcd.reduce(extra.astype(np.int64), None))
    room = min(resource.limit - base.sum(), extra.max(1).sum())
    slots = int(room // step)
    if len(free) * (slots + 1) > max_table:
        raise BudgetError(
            f'a table of {len(free)} units by {slots + 1} sums of '
            f'{resource.name} takes more than {max_table} bytes: use groups '
            "whose sizes have a larger common divisor, or method='hull' or "
            "'milp'"
        )
    distortions = np.where(kept, problem.distortions, np.inf)[free]
    steps = (extra / step).astype(np.int64)
    choice[free] = _best_of_table(distortions, steps, slots)
    return choice


def _check_whole(resource: Resource) -> None:
    costs = resource.costs
    odd = costs[costs != np.floor(costs)]
    if len(odd):
        raise BudgetError(
            f"method 'dp' counts whole numbers, {resource.name} has a cost "
            f'of {odd[0]:.10g}: give costs in a smaller unit, or use method='
            "'lagrange', 'hull' or 'milp'"
        )
    if costs.max(1).sum() >= WHOLE:
        raise BudgetError(
            f'costs of {resource.name} add up to 2^53 or more, where floats '
            'are not exact: give them in a larger unit'
        )


def _worth_trying(problem: Problem, resource: Resource) -> Bools:
    """Options ``[U, K]`` that may be in an optimum; one optimum is left.

    For any price, every choice within the budget has at least the distortion
    of ``bound`` below plus what its options miss of their units' minima. The
    greedy choice is within the budget, so what exceeds its distortion is in
    no optimum.
    """
    distortions, costs = problem.distortions, resource.costs
    greedy = problem.distortion(solve_hull(problem))
    price = _price(distortions, resource)
    priced = distortions + price * costs
    least = priced.min(1, keepdims=True)
    bound = least.sum() - price * resource.limit
    # rounding of the two sums
    doubt = 1e-12 * (np.abs(least).sum() + price * resource.limit)
    within: Bools = priced - least <= greedy - bound + doubt
    return within & _undominated(distortions, costs)


def _undominated(distortions: Floats, costs: Floats) -> Bools:
    """Options that no cheaper or equal one is as good as."""
    kept = np.isfinite(distortions)
    index = np.arange(distortions.shape[1])
    for k in index:
        cost, loss = costs[:, k, None], distortions[:, k, None]
        same = (costs == cost) & (distortions == loss)
        beaten = (
            (costs <= cost) & (distortions <= loss) & (~same | (index < k))
        )
        kept[:, k] &= ~(beaten & np.isfinite(distortions)).any(1)
    return kept


def _price(distortions: Floats, resource: Resource) -> float:
    """The price of a cost at which hulls come nearest to the budget."""
    costs = resource.costs
    start = cheapest(distortions, costs)
    segments = hull_segments(distortions, costs, start)
    room = resource.limit - resource.total(start)
    over = np.flatnonzero(np.cumsum(segments.cost) > room)
    return float(segments.slope[over[0]]) if len(over) else 0.0


def _best_of_table(distortions: Floats, steps: Ints, slots: int) -> Ints:
    """The optimum of units with several options.

    Args:
        distortions (array): ``[F, K]``, infinite where there is no option.
        steps (array): int64 ``[F, K]``, costs above the unit's cheapest.
        slots (int): How many steps there are for all units.

    Returns:
        array: int64 ``[F]``.
    """
    units = len(distortions)
    table = np.zeros((units, slots + 1), np.uint8)
    # of the units so far: the least distortion within each number of steps
    best = np.zeros(slots + 1)
    for unit in range(units):
        new = np.full(slots + 1, np.inf)
        for option in np.argsort(steps[unit], kind='stable').tolist():
            loss, step = distortions[unit, option], steps[unit, option]
            if not np.isfinite(loss) or step > slots:
                continue
            tried = best[: slots + 1 - step] + loss
            better = tried < new[step:]
            np.copyto(new[step:], tried, where=better)
            np.copyto(table[unit, step:], np.uint8(option), where=better)
        best = new
    choice, left = np.zeros(units, np.int64), slots
    for unit in reversed(range(units)):
        choice[unit] = table[unit, left]
        left -= steps[unit, choice[unit]]
    return choice
