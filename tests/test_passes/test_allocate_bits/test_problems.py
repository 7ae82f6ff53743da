# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Budgets of two tables worked by hand."""

from math import inf

import numpy as np
import pytest

from mmdet_ptq.errors import BudgetError
from mmdet_ptq.passes.allocate_bits.problems import (
    WidthProblem,
    cost_of_widths,
    solved,
)
from mmdet_ptq.solvers import Resource

#: units of 10 and 30 elements, of 4 or 8 bits
PROBLEM = WidthProblem(
    'weights',
    Resource.mean_bits([10, 30], [4, 8], 5.0),
    [[((u, 0),), ((u, 1),)] for u in (0, 1)],
)
#: one decision for both units
BOTH = WidthProblem(
    'layers',
    Resource('BOPs', np.array([[16.0, 64.0]]), 64.0),
    [[((0, 0), (1, 0)), ((0, 1), (1, 1))]],
)
ADDED = np.array([[3.0, 1.0], [9.0, 8.0]])


def test_the_choice_within_a_budget():
    # 8 bits for ten elements of forty are 5 on average
    assert solved(PROBLEM, ADDED, 'dp', {}) == ({0: 1, 1: 0}, True)
    assert solved(PROBLEM, ADDED, 'hull', {}) == ({0: 1, 1: 0}, True)
    assert solved(BOTH, ADDED, 'dp', {}) == ({0: 1, 1: 1}, True)


def test_what_widths_cost():
    assert cost_of_widths(PROBLEM, [1, 0]) == 5
    assert cost_of_widths(BOTH, [1, 1]) == 64
    assert cost_of_widths(BOTH, [1, 0]) == inf


@pytest.mark.parametrize(
    'budget, end', [(3.9, 'a lower floor'), (8.1, 'a greater most')]
)
def test_a_budget_out_of_reach(budget, end):
    resource = Resource.mean_bits([10, 30], [4, 8], budget)
    problem = WidthProblem('weights', resource, PROBLEM.picks)
    match = f'weights: a budget of {budget} mean bits .* 4 to 8, or {end}'
    with pytest.raises(BudgetError, match=match):
        problem.check(ADDED)
    PROBLEM.check(ADDED)
