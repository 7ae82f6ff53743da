# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Multiple-choice knapsacks: an option for each unit, within budgets.

Units have options with a distortion and costs; one option of each is
chosen so that the total distortion is small and costs keep to budgets.
Nothing here knows of networks.
"""

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import QuantConfigError, unknown
from .dynamic import solve_dynamic
from .hull import solve_hull
from .lagrange import solve_lagrange
from .milp import solve_milp
from .problem import (
    Problem,
    Resource,
    Solution,
    decreasing,
    mean_bits_problem,
)

METHODS: dict[str, Callable[..., Solution]] = dict(
    dp=solve_dynamic,
    hull=solve_hull,
    lagrange=solve_lagrange,
    milp=solve_milp,
)

__all__ = [
    'METHODS',
    'Problem',
    'Resource',
    'Solution',
    'decreasing',
    'mean_bits_problem',
    'solve',
]


def solve(problem: Problem, method: str = 'dp', **options: Any) -> Solution:
    """Chooses an option of each unit.

    Args:
        problem (Problem): Distortions, costs and budgets.
        method (str): ``'dp'``: the optimum of one budget.
            ``'lagrange'``: near it, by bisection; the one method that may
            exceed a budget, with ``strict=False``. ``'hull'``: near it, by
            steepest steps. ``'milp'``: the optimum, of several budgets too.
        **options: Of the method: see :func:`solve_dynamic`,
            :func:`solve_lagrange`, :func:`solve_hull`, :func:`solve_milp`.

    Returns:
        Solution: The choice, its distortion and costs.

    Raises:
        BudgetError: If the budgets cannot be met, with those that can, or
            are not of a kind that the method can hold.
        QuantConfigError: On a method or an option that does not exist.

    Examples:
        >>> curves = [[9.0, 1.0], [4.0, 3.0]]
        >>> problem = mean_bits_problem([10, 10], [4, 8], curves, budget=6)
        >>> solve(problem).choice
        array([1, 0])
    """
    if method not in METHODS:
        raise QuantConfigError(unknown('solver', method, METHODS))
    allowed = [*inspect.signature(METHODS[method]).parameters][1:]
    for name in options:
        if name not in allowed:
            what = unknown('option', name, allowed or ['none'])
            raise QuantConfigError(f'solver {method!r}: {what}')
    return METHODS[method](problem, **options)
