# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One budget by bisection of a price: the Lagrangian method of F-LBQ.

After RDO-Q (Wang et al., ECCV 2022), whose bisection F-LBQ takes over: for a
price 2^t of a cost each unit takes its cheapest option by itself, and t is
bisected until the costs meet the budget.
"""

import numpy as np

from ..errors import BudgetError
from .hull import cheapest, fill, hull_segments
from .problem import Floats, Ints, Problem, Resource, Solution

LOWEST_T = -100.0
MOST_STEPS = 60
"""After these 2^t no longer changes as a float."""


def solve_lagrange(
    problem: Problem,
    strict: bool = True,
    tolerance: float = 0.02,
    compat: bool = False,
) -> Solution:
    """Chooses by the price at which the costs meet the budget.

    Prices are 2^t of the steepest step of all units, t in [-100, 0]: at 0
    all units take their cheapest options, at -100 their best. Choices of
    prices lie on the hulls of the units' options. Where none is within the
    tolerance, better options that fit are taken on top, the steepest first.

    Args:
        problem (Problem): With one resource.
        strict (bool): Whether the budget is never exceeded. If not, a choice
            within the tolerance on either side of it, or else the nearest
            that was found. Defaults to True.
        tolerance (float): How near the cost has to come to the budget, in
            the unit of the budget. Defaults to 0.02, that of F-LBQ's mean
            bits.
        compat (bool): Whether a price is one of a bit, whatever the size of
            the unit, as in RDO-Q's code. That is not the Lagrangian of a
            budget in which large units take more, and loses where units
            differ in size. Defaults to False.

    Returns:
        Solution: Within the budget, or near it if not ``strict``.

    Raises:
        BudgetError: If the budget cannot be met, there are several, or
            ``compat`` is asked of costs that are not sizes times bits.
        ValueError: If ``tolerance`` is below 0.
    """
    if not tolerance >= 0:
        raise ValueError(f'tolerance must be from 0, got {tolerance!r}')
    resource = problem.only('lagrange')
    problem.check_feasible()
    priced = _priced_costs(resource, compat)
    choice = _nearest(problem, resource, priced, strict, tolerance)
    return Solution.of(problem, choice, 'lagrange')


def _nearest(
    problem: Problem,
    resource: Resource,
    priced: Floats,
    strict: bool,
    tolerance: float,
) -> Ints:
    """A choice near the budget, filled up where that is needed."""
    below, above = _bisect(problem, resource, priced, strict, tolerance)
    room = resource.limit - resource.total(below)
    if above is None or room <= tolerance * resource.unit:
        return below
    over = resource.total(above) - resource.limit
    if not strict and over <= tolerance * resource.unit:
        return above
    below = fill(problem, below, room)
    room = resource.limit - resource.total(below)
    return below if strict or room <= over else above


def _priced_costs(resource: Resource, compat: bool) -> Floats:
    if not compat:
        return resource.costs
    if resource.sizes is None:
        raise BudgetError(
            f'compat=True needs the sizes of units, {resource.name} has '
            'costs alone: use mean bits or bytes, or leave it out'
        )
    return resource.costs / resource.sizes[:, None]


def _bisect(
    problem: Problem,
    resource: Resource,
    priced: Floats,
    strict: bool,
    tolerance: float,
) -> tuple[Ints, Ints | None]:
    """The nearest choices within the budget and, if any, above it."""
    distortions = problem.distortions
    start = cheapest(distortions, priced)
    slopes = hull_segments(distortions, priced, start).slope
    steepest = slopes[0] if len(slopes) else 0.0

    def chosen(t: float) -> Ints:
        total = distortions + steepest * 2.0**t * priced
        # of options that come to the same the cheapest
        least = total == total.min(1, keepdims=True)
        return cheapest(np.where(least, distortions, np.inf), priced)

    best = chosen(LOWEST_T)
    if resource.total(best) <= resource.limit:
        return best, None
    low, high = LOWEST_T, 0.0
    below, above = start, best
    for _ in range(MOST_STEPS):
        t = (low + high) / 2
        choice = chosen(t)
        rest = resource.limit - resource.total(choice)
        if rest >= 0:
            high, below = t, choice
        else:
            low, above = t, choice
        near = rest >= 0 or not strict
        if near and abs(rest) <= tolerance * resource.unit:
            break
    return below, above
