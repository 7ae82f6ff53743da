# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Lower hulls of the options of units, and the greedy walk along them."""

from typing import NamedTuple

import numpy as np

from .problem import Floats, Ints, Problem, Solution


class Segments(NamedTuple):
    """Steps along the lower hulls of all units, the steepest first.

    Attributes:
        unit (array): int64 ``[S]``.
        option (array): int64 ``[S]``, where the step leads.
        cost (array): float64 ``[S]``, what it adds, above 0.
        slope (array): float64 ``[S]``, the drop in distortion for each of
            these, above 0.
    """

    unit: Ints
    option: Ints
    cost: Floats
    slope: Floats


def cheapest(distortions: Floats, costs: Floats) -> Ints:
    """Of each unit the cheapest option, and the best of several such.

    Args:
        distortions (array): ``[U, K]``, infinite where there is no option.
        costs (array): ``[U, K]``.

    Returns:
        array: int64 ``[U]``.
    """
    known = np.where(np.isfinite(distortions), costs, np.inf)
    least = known == known.min(1, keepdims=True)
    found: Ints = np.where(least, distortions, np.inf).argmin(1)
    return found


def hull_segments(distortions: Floats, costs: Floats, start: Ints) -> Segments:
    """Steps from options of units along their lower hulls to the best ones.

    Args:
        distortions (array): ``[U, K]``, infinite where there is no option.
        costs (array): ``[U, K]``.
        start (array): int64 ``[U]``, where each unit begins.
    """
    units, at = np.arange(len(start)), start
    before = np.full(len(start), np.inf)
    found = []
    for _ in range(distortions.shape[1]):
        cost = costs[units] - costs[units, at][:, None]
        drop = distortions[units, at][:, None] - distortions[units]
        ahead = (cost > 0) & (drop > 0)
        slope = np.where(ahead, drop / np.where(ahead, cost, 1), 0.0)
        # of equally steep steps the longest
        steepest = slope.max(1, keepdims=True)
        best = np.where(slope == steepest, cost, -np.inf).argmax(1)
        go = np.flatnonzero(steepest[:, 0] > 0)
        units, at, rows = units[go], best[go], go
        if not len(go):
            break
        # rounding must not make a later step of a straight hull the steeper
        before = np.minimum(before[rows], slope[rows, at])
        found.append((units, at, cost[rows, at], before))
    if not found:
        none = np.zeros(0, np.int64)
        return Segments(none, none, np.zeros(0), np.zeros(0))
    parts = [np.concatenate(part) for part in zip(*found, strict=True)]
    order = np.argsort(-parts[3], kind='stable')
    return Segments(*(part[order] for part in parts))


def fill(problem: Problem, start: Ints, room: float) -> Ints:
    """Takes better options while they fit, the steepest first.

    When no more steps along the hulls fit, new hulls are drawn of the
    options that do, until there are none.

    Args:
        problem (Problem): With one resource.
        start (array): int64 ``[U]``, a choice.
        room (float): What may be added to its cost.

    Returns:
        array: int64 ``[U]``, a choice that is nowhere worse.
    """
    costs = problem.resources[0].costs
    choice: Ints = start.copy()
    every = np.arange(len(start))
    while True:
        added = costs - costs[every, choice][:, None]
        fits = (added <= room) & problem.allowed
        fits[every, choice] = True
        fitting = np.where(fits, problem.distortions, np.inf)
        segments = hull_segments(fitting, costs, choice)
        if not len(segments.unit):
            return choice
        room -= _take(segments, choice, room)


def _take(segments: Segments, choice: Ints, room: float) -> float:
    """Makes steps that fit, in order; returns what they take."""
    left = room
    # a unit whose step did not fit makes none of its later ones
    blocked = set()
    for unit, option, cost in zip(
        segments.unit.tolist(),
        segments.option.tolist(),
        segments.cost.tolist(),
        strict=True,
    ):
        if unit in blocked:
            continue
        if cost > left:
            blocked.add(unit)
            continue
        left -= cost
        choice[unit] = option
    return room - left


def solve_hull(problem: Problem) -> Solution:
    """Greedy: from the cheapest options up the steepest steps that fit.

    Args:
        problem (Problem): With one resource.

    Returns:
        Solution: Within the budget.

    Raises:
        BudgetError: If the budget cannot be met, or there are several.
    """
    resource = problem.only('hull')
    problem.check_feasible()
    start = cheapest(problem.distortions, resource.costs)
    room = resource.limit - resource.total(start)
    return Solution.of(problem, fill(problem, start, room), 'hull')
