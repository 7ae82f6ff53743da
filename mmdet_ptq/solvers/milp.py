# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Several budgets at once, by mixed-integer linear programming (HiGHS)."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from ..errors import BudgetError
from .problem import Floats, Ints, Problem, Resource, Solution

#: objective values are scaled to this, well above HiGHS's tolerances
SCALE = 1e4
ROUNDS = 5
#: what HiGHS's status means
STOPPED, INFEASIBLE = 1, 2


def solve_milp(
    problem: Problem, gap: float = 0.0, time_limit: float = 60.0
) -> Solution:
    """Finds the least distortion within all budgets.

    Args:
        problem (Problem): With any number of resources.
        gap (float): Relative distance from the optimum at which to stop.
            Defaults to 0: the optimum, as far as floats tell.
        time_limit (float): Seconds; after them the best choice so far is
            taken, which ``in_time`` says. It depends on how busy the machine
            is. Defaults to 60.

    Returns:
        Solution: Within all budgets.

    Raises:
        BudgetError: If no choice meets all budgets, with the least of each
            that the others allow; or if none was found in time.
        ValueError: If ``gap`` is below 0 or ``time_limit`` not above.
    """
    if not gap >= 0 or not time_limit > 0:
        raise ValueError(
            'gap must be from 0 and time_limit above 0, got '
            f'{gap!r} and {time_limit!r}'
        )
    problem.check_feasible()
    limits = [r.limit for r in problem.resources]
    for _ in range(ROUNDS):
        found = _run(
            problem,
            problem.distortions,
            problem.resources,
            limits,
            gap,
            time_limit,
        )
        if found is None:
            raise BudgetError(_why(problem, time_limit))
        choice, in_time = found
        # HiGHS lets a sum exceed its limit by a tolerance
        over = [r.total(choice) - r.limit for r in problem.resources]
        if max(over) <= 0:
            return Solution.of(problem, choice, 'milp', in_time)
        limits = [
            limit - 2 * max(o, 0.0)
            for limit, o in zip(limits, over, strict=True)
        ]
    raise BudgetError(
        'the numbers of this problem differ too much for exact arithmetic '
        'of HiGHS: give costs in larger units'
    )


def _run(
    problem: Problem,
    objective: Floats,
    resources: tuple[Resource, ...],
    limits: list[float],
    gap: float,
    time_limit: float,
) -> tuple[Ints, bool] | None:
    """One run of HiGHS: a choice, and whether it was not stopped.

    Returns:
        tuple[Ints, bool] | None: None if there is no choice.

    Raises:
        BudgetError: If the time was over before there was one.
    """
    allowed = problem.allowed
    unit = np.nonzero(allowed)[0]
    column = np.arange(len(unit))
    one = csr_matrix((np.ones(len(unit)), (unit, column)))
    rules = [LinearConstraint(one, 1, 1)]
    for resource, limit in zip(resources, limits, strict=True):
        costs = resource.costs[allowed]
        most = costs.max() or 1.0
        rules.append(LinearConstraint(costs[None] / most, ub=limit / most))
    values = objective[allowed]
    least = np.where(allowed, objective, np.inf).min(1)
    values = values - least[unit]
    result = milp(
        values * (SCALE / (values.max() or 1.0)),
        integrality=np.ones(len(unit)),
        bounds=Bounds(0, 1),
        constraints=rules,
        options=dict(mip_rel_gap=gap, time_limit=time_limit),
    )
    if result.x is None:
        if result.status == INFEASIBLE:
            return None
        raise BudgetError(
            f'HiGHS found no choice within {time_limit:g} s '
            f'({result.message}): give it a longer time_limit'
        )
    taken = np.zeros(allowed.shape)
    taken[allowed] = result.x
    found: Ints = taken.argmax(1)
    return found, result.status != STOPPED


def _why(problem: Problem, time_limit: float) -> str:
    """What each budget would have to be with the others as they are."""
    words = []
    for resource in problem.resources:
        others = tuple(r for r in problem.resources if r is not resource)
        limits = [r.limit for r in others]
        found = _run(
            problem,
            np.where(problem.allowed, resource.costs, np.inf),
            others,
            limits,
            0.0,
            time_limit,
        )
        given = f'{resource.budget:.10g} {resource.name}'
        if found is None:
            words.append(f'{given}: no number would do')
        else:
            least = resource.total(found[0]) / resource.unit
            words.append(f'{given}: {least:.10g} at least')
    return (
        'no choice meets all budgets at once. With the others as they are, '
        f'in place of {"; of ".join(words)}'
    )
