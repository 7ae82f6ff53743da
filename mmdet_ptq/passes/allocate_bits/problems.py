# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is chosen within one budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from ...errors import BudgetError
from ...solvers import Problem, Resource, solve
from .curves import Floats

#: what rounding may add to a sum of costs
SLACK = 1e-9

Picks = tuple[tuple[int, int], ...]
"""Unit and column of its width, for each unit that an option decides on."""


@dataclass(frozen=True, eq=False)
class WidthProblem:
    """One budget and what may be chosen within it.

    Attributes:
        name (str): What is chosen, for messages.
        resource (Resource): Costs of each option of each decision.
        picks (list[list[Picks]]): What each of these means.
    """

    name: str
    resource: Resource
    picks: list[list[Picks]]

    def within(self, added: Floats) -> Problem:
        """What is to be solved.

        Args:
            added (Floats): ``[U, K]``, distances of units at widths; NaN
                where a unit does not have one.
        """
        shape = self.resource.costs.shape
        table = np.full(shape, np.inf)
        for i, options in enumerate(self.picks):
            for k, picks in enumerate(options):
                table[i, k] = sum(
                    added[unit, column] for unit, column in picks
                )
        return Problem(table, (self.resource,))

    def check(self, added: Floats) -> None:
        """Refuses a budget that is out of reach, on either side.

        Args:
            added (Floats): As of :meth:`within`; its numbers do not matter.

        Raises:
            BudgetError: With those that can be met.
        """
        bounded = self.within(added)
        resource = self.resource
        low, high = bounded.bounds(resource)
        slack = SLACK * high
        if low - slack <= resource.budget <= high + slack:
            return
        below = resource.budget < low
        raise BudgetError(
            f'AllocateBits: {self.name}: a budget of {resource.budget:.10g} '
            f'{resource.name} is {"below" if below else "above"} what the '
            f'{"least" if below else "greatest"} widths take; give one from '
            f'{low:.10g} to {high:.10g}, or '
            + (
                'a lower floor (2 is the least)'
                if below
                else 'a greater most (8 is the greatest)'
            )
        )


def cost_of_widths(problem: WidthProblem, columns: Sequence[int]) -> float:
    """What given widths take of a budget, in its unit.

    Args:
        problem (WidthProblem): The budget.
        columns (Sequence[int]): Column of the width of each unit.

    Returns:
        float: Infinite if no option has these widths.
    """
    total = 0.0
    for i, options in enumerate(problem.picks):
        fits = (
            k
            for k, picks in enumerate(options)
            if all(columns[unit] == column for unit, column in picks)
        )
        at = next(fits, None)
        if at is None:
            return inf
        total += float(problem.resource.costs[i, at])
    return total / problem.resource.unit


def solved(
    problem: WidthProblem,
    added: Floats,
    solver: str,
    options: Mapping[str, object],
) -> tuple[dict[int, int], bool]:
    """Chooses widths within a budget.

    Args:
        problem (WidthProblem): The budget.
        added (Floats): ``[U, K]``.
        solver (str): Method of :func:`mmdet_ptq.solvers.solve`.
        options (Mapping[str, object]): Of the method.

    Returns:
        tuple[dict[int, int], bool]: Column of the width of each unit; and
        whether the solver was left the time that it needed.
    """
    solution = solve(problem.within(added), solver, **options)
    columns = {
        unit: column
        for options_of, k in zip(problem.picks, solution.choice, strict=True)
        for unit, column in options_of[k]
    }
    return columns, solution.in_time
