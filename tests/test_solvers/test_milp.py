import numpy as np
import pytest
from hypothesis import given, settings
from solver_kit import brute_force, curves, problems, within

from mmdet_ptq.errors import BudgetError
from mmdet_ptq.solvers import Problem, Resource, solve
from mmdet_ptq.solvers import milp as milp_module

BITS = range(2, 9)


def two(bits, ops):
    """Units whose bits and operations are in opposite proportion."""
    table = [[8, 2], [8, 1]]
    costs = np.array([[4.0, 24], [12, 16]]), np.array([[9.0, 12], [3, 23]])
    return Problem(
        table,
        (Resource('bits', costs[0], bits), Resource('ops', costs[1], ops)),
    )


def test_two_budgets_by_hand():
    assert solve(two(40, 35), 'milp').choice.tolist() == [1, 1]
    # 20 bits allow a step of unit 1 alone, 15 operations one of unit 0 alone
    assert solve(two(20, 35), 'milp').choice.tolist() == [0, 1]
    assert solve(two(40, 15), 'milp').choice.tolist() == [1, 0]
    assert solve(two(20, 15), 'milp').choice.tolist() == [0, 0]
    found = solve(two(20, 35), 'milp')
    assert found.costs == dict(bits=20, ops=32)
    assert found.budgets == dict(bits=20, ops=35)


@settings(max_examples=25, deadline=None)
@given(problems(whole=False, resources=2))
def test_it_is_the_optimum_of_several_budgets(problem):
    found = solve(problem, 'milp')
    assert within(found)
    wanted = brute_force(problem)
    assert found.distortion == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_budgets_that_exclude_each_other_are_told():
    # one of the two is large whatever is chosen
    problem = Problem(
        [[1, 1]],
        (
            Resource('bits', np.array([[2.0, 9]]), 5),
            Resource('ops', np.array([[30.0, 10]]), 20),
        ),
    )
    with pytest.raises(BudgetError) as error:
        solve(problem, 'milp')
    assert str(error.value) == (
        'no choice meets all budgets at once. With the others as they are, '
        'in place of 5 bits: 9 at least; of 20 ops: 30 at least'
    )


def test_with_a_gap_it_may_stop_early():
    sizes, table = curves(50, BITS, 0)
    costs = sizes[:, None] * np.array(BITS)
    problem = Problem(table, (Resource('bits', costs, sizes.sum() * 4.1),))
    exact = solve(problem, 'dp').distortion
    found = solve(problem, 'milp', gap=0.05)
    assert within(found)
    assert exact * (1 - 1e-9) <= found.distortion <= exact * 1.06


def test_a_choice_at_the_time_limit_says_so(monkeypatch):
    """HiGHS gives its best choice so far, by the status of a limit."""
    assert solve(two(40, 35), 'milp').in_time
    full = milp_module.milp

    def stopped(*args, **kwargs):
        result = full(*args, **kwargs)
        result.status = 1
        return result

    monkeypatch.setattr(milp_module, 'milp', stopped)
    found = solve(two(40, 35), 'milp')
    assert found.choice.tolist() == [1, 1] and not found.in_time


@pytest.mark.parametrize('options', [dict(gap=-1), dict(time_limit=0)])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match='gap must be from 0'):
        solve(two(32, 24), 'milp', **options)
