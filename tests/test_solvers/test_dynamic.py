import numpy as np
import pytest
from hypothesis import given, settings
from solver_kit import brute_force, curves, problems, within

from mmdet_ptq.errors import BudgetError
from mmdet_ptq.solvers import (
    decreasing,
    mean_bits_problem,
    solve,
)

BITS = range(2, 9)


def test_a_table_by_hand():
    # 2, 3 and 4 bits of units of 1, 2 and 3 elements; at 3 bits on average
    # 18 bits for all: unit 2 has 4 (12 bits), so the others share 6, which
    # is 2 for each; any other choice loses more than 8 + 6 + 1
    table = [[8, 5, 3], [6, 4, 3], [30, 16, 1]]
    problem = mean_bits_problem([1, 2, 3], [2, 3, 4], table, budget=3)
    found = solve(problem)
    assert found.choice.tolist() == [0, 0, 2]
    assert found.distortion == 15
    assert found.costs == {'mean bits': 3.0}
    assert found.budgets == {'mean bits': 3.0}
    # one bit more than that goes to the unit of one element
    problem = mean_bits_problem([1, 2, 3], [2, 3, 4], table, budget=19 / 6)
    assert solve(problem).choice.tolist() == [1, 0, 2]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_it_is_the_optimum(problem):
    found = solve(problem, 'dp')
    assert within(found)
    assert found.distortion == pytest.approx(brute_force(problem), rel=1e-9)


@pytest.mark.parametrize('budget', [2, 3.1, 4, 5.7, 8, 20])
@pytest.mark.parametrize('seed', range(3))
def test_it_is_not_beaten(budget, seed):
    sizes, table = curves(60, BITS, seed)
    problem = mean_bits_problem(sizes, BITS, table, budget)
    found = solve(problem)
    assert within(found)
    for method in ('hull', 'lagrange', 'milp'):
        other = solve(problem, method)
        assert within(other)
        assert found.distortion <= other.distortion * (1 + 1e-9), method
    if budget in BITS:
        uniform = table[:, list(BITS).index(budget)].sum()
        assert found.distortion <= uniform * (1 + 1e-9)


def test_more_budget_is_never_worse():
    sizes, table = curves(40, BITS, 5)
    losses = [
        solve(mean_bits_problem(sizes, BITS, table, b)).distortion
        for b in np.linspace(2, 8, 25)
    ]
    assert (np.diff(losses) <= 0).all()
    best = decreasing(table)[:, -1].sum()
    assert losses[-1] == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(problems(whole=False))
def test_costs_may_be_any_numbers(problem):
    found = solve(problem, 'dp')
    assert within(found)
    assert found.distortion == pytest.approx(brute_force(problem), rel=1e-9)


def test_sizes_without_a_common_divisor_take_no_more():
    _, table = curves(2000, BITS, 1)
    sizes = np.random.default_rng(0).integers(1, 10**6, 2000)
    problem = mean_bits_problem(sizes, BITS, table * sizes[:, None], 4.3)
    found = solve(problem, max_sums=10**6)
    greedy = solve(problem, 'hull')
    assert within(found)
    assert found.distortion <= greedy.distortion
    assert found.costs['mean bits'] > 4.2999


def test_more_sums_than_allowed_are_refused():
    sizes, table = curves(40, BITS, 0)
    problem = mean_bits_problem(sizes, BITS, table, 4.13)
    with pytest.raises(BudgetError, match="method='hull', or 'milp'"):
        solve(problem, max_sums=1)


def test_equal_units_are_solved():
    # the hull has 2, 5 and 8 bits: all options of all units are as good
    table = np.tile([9, 8.9, 8.8, 3, 2.9, 2.8, 2.0], (300, 1))
    found = solve(mean_bits_problem([128] * 300, BITS, table, 3.5))
    # half of them have 5 bits, the others 2
    assert found.distortion == pytest.approx(150 * (9 + 3))


def test_max_sums_is_checked():
    problem = mean_bits_problem([1], [2], [[1]], 4)
    with pytest.raises(ValueError, match='max_sums must be a whole number'):
        solve(problem, max_sums=0)
