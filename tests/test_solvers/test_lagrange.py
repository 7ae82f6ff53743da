import numpy as np
import pytest
from hypothesis import given, settings
from solver_kit import brute_force, curves, problems, within

from mmdet_ptq.errors import BudgetError
from mmdet_ptq.solvers import Problem, Resource, mean_bits_problem, solve

BITS = range(2, 9)


def loose(budget, **options):
    """Two units of one element with steps at prices 3 and 1."""
    table = [[7, 1], [3, 1]]
    problem = mean_bits_problem([1, 1], [2, 4], table, budget)
    return solve(problem, 'lagrange', **options).choice.tolist()


def test_prices_by_hand():
    assert loose(3) == [1, 0]
    # 3 and 4 bits can be had for a price, 3.4 and 3.6 cannot
    assert loose(3.4) == loose(3.6) == [1, 0]
    assert loose(3.4, strict=False) == [1, 0]
    assert loose(3.6, strict=False) == [1, 1]
    # as near as the tolerance is near enough
    assert loose(3.99, strict=False) == [1, 1]


@settings(max_examples=100, deadline=None)
@given(problems(whole=False))
def test_strict_keeps_to_the_budget(problem):
    found = solve(problem, 'lagrange')
    assert within(found)
    assert found.distortion >= brute_force(problem) * (1 - 1e-9)


@pytest.mark.parametrize('budget', [2.3, 3.5, 4, 6.2])
@pytest.mark.parametrize('strict', [True, False])
def test_it_comes_within_the_tolerance(budget, strict):
    sizes, table = curves(327, BITS, 3)
    problem = mean_bits_problem(sizes, BITS, table, budget)
    found = solve(problem, 'lagrange', strict=strict)
    (cost,) = found.costs.values()
    assert abs(budget - cost) <= 0.02
    if strict:
        assert cost <= budget * (1 + 1e-9)
    best = solve(problem, 'dp').distortion
    assert found.distortion <= 1.05 * best
    if strict:
        assert found.distortion >= best * (1 - 1e-9)


def test_a_smaller_tolerance_comes_nearer():
    sizes, table = curves(327, BITS, 3)
    problem = mean_bits_problem(sizes, BITS, table, 4.321)
    found = solve(problem, 'lagrange', tolerance=0.001)
    assert 0 <= 4.321 - found.costs['mean bits'] <= 0.001


def test_room_that_no_price_uses_is_filled():
    # unit 1 steps first, by 3 bits; unit 0 then by 6 or, off the hull, by 3,
    # which is what is left of 5 bits on average
    table = [[20, 15, 2], [9.3, 0, 0]]
    problem = mean_bits_problem([1, 1], [2, 5, 8], table, 5)
    found = solve(problem, 'lagrange')
    assert found.choice.tolist() == [1, 1]


def test_compat_prices_bits_and_not_elements():
    # 8 bits gain 6 in unit 0 and 4 in unit 1, which is a tenth the size
    table = [[8, 2], [5, 1]]
    problem = mean_bits_problem([10, 1], [4, 8], table, 4 + 4 / 11)
    assert solve(problem, 'lagrange').choice.tolist() == [0, 1]
    problem = mean_bits_problem([10, 1], [4, 8], table, 4 + 40 / 11)
    assert solve(problem, 'lagrange').choice.tolist() == [0, 1]
    found = solve(problem, 'lagrange', compat=True)
    assert found.choice.tolist() == [1, 0]


def test_compat_loses_where_sizes_differ():
    sizes, table = curves(200, BITS, 7)
    sizes = sizes * np.random.default_rng(1).choice([1, 4, 16], 200)
    problem = mean_bits_problem(sizes, BITS, table, 4)
    right = solve(problem, 'lagrange').distortion
    other = solve(problem, 'lagrange', compat=True)
    assert within(other)
    assert other.distortion > 1.05 * right


def test_options_are_checked():
    costs = Resource('BOPs', np.ones((1, 2)), 4)
    problem = Problem([[1, 2]], (costs,))
    with pytest.raises(BudgetError, match='BOPs has costs alone'):
        solve(problem, 'lagrange', compat=True)
    with pytest.raises(ValueError, match='tolerance must be from 0, got -1'):
        solve(problem, 'lagrange', tolerance=-1)
