import numpy as np
import pytest
from hypothesis import given, settings
from solver_kit import brute_force, problems, within

from mmdet_ptq.errors import BudgetError
from mmdet_ptq.solvers import Problem, Resource, mean_bits_problem, solve
from mmdet_ptq.solvers.hull import cheapest, fill, hull_segments

# costs 0 to 4 of unit 0: (2, 5) lies above the line from (0, 10) to (3, 1),
# and the last gains nothing; unit 1 has two steps, of 2 and then 1 a cost
LOSSES = np.array([[10, 9, 5, 1, 1], [7, 5, 4, np.inf, np.inf]])
COSTS = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 0, 0.0]])


def test_the_hull_by_hand():
    found = hull_segments(LOSSES, COSTS, cheapest(LOSSES, COSTS))
    assert found.unit.tolist() == [0, 1, 1]
    assert found.option.tolist() == [3, 1, 2]
    assert found.cost.tolist() == [3, 1, 1]
    assert found.slope.tolist() == [3, 2, 1]


def test_of_equally_cheap_options_the_best_is_first():
    losses = np.array([[3, 2, 1], [np.inf, 4, 5]])
    assert cheapest(losses, np.array([[1, 1, 2], [0, 2, 2]])).tolist() == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    ('budget', 'choice'),
    [
        (1, [0, 0]),
        (2, [0, 1]),  # the step of 3 does not fit, that of 1 does
        # then only what is no corner of the first hull: 5 for a cost of 2
        (3, [2, 0]),
        (4, [3, 0]),
        (5, [3, 1]),
        (6, [3, 2]),
        (99, [3, 2]),
    ],
)
def test_the_walk_by_hand(budget, choice):
    problem = Problem(LOSSES, (Resource('cost', COSTS, budget),))
    assert solve(problem, 'hull').choice.tolist() == choice


def test_room_is_filled_with_options_off_the_hull():
    problem = Problem(LOSSES, (Resource('cost', COSTS, 9),))
    assert fill(problem, np.array([0, 2]), 2.5).tolist() == [2, 2]
    assert fill(problem, np.array([0, 2]), 0.5).tolist() == [0, 2]


@settings(max_examples=60, deadline=None)
@given(problems(whole=False))
def test_it_keeps_to_the_budget(problem):
    found = solve(problem, 'hull')
    assert within(found)
    assert np.isfinite(found.distortion)
    assert found.distortion >= brute_force(problem) * (1 - 1e-9)


def test_large_units_pay_for_their_size():
    # unit 1 gains more in all, but less for each of its bits
    table = [[10, 1], [12, 1]]
    problem = mean_bits_problem([10, 100], [4, 8], table, 4 + 40 / 110)
    assert solve(problem, 'hull').choice.tolist() == [1, 0]


def test_several_budgets_are_refused():
    both = (Resource('a', COSTS, 9), Resource('b', COSTS, 9))
    with pytest.raises(BudgetError, match=r"2 \(a, b\): use method='milp'"):
        solve(Problem(LOSSES, both), 'hull')


STRAIGHT = [
    # to rounding, all options of a unit lie on a line
    [4.54, 3.5999999999999996, 2.66, 1.72, 0.78],
    [4.06, 3.2299999999999995, 2.4, 1.5699999999999998, 0.74],
]


def test_rounding_does_not_reorder_the_steps_of_a_straight_curve():
    problem = mean_bits_problem(
        [70, 31], [2, 3, 4, 5, 6], STRAIGHT, 5.53570236648477
    )
    segments = hull_segments(
        problem.distortions, problem.resources[0].costs, np.zeros(2, int)
    )
    for unit in (0, 1):
        steps = segments.option[segments.unit == unit]
        assert steps.tolist() == sorted(steps)
    for method in ('hull', 'dp', 'lagrange'):
        found = solve(problem, method)
        assert within(found)
        assert found.distortion == pytest.approx(brute_force(problem))


@settings(max_examples=60, deadline=None)
@given(problems(straight=True))
def test_straight_curves(problem):
    assert within(solve(problem, 'hull'))
    best = solve(problem, 'dp')
    assert within(best)
    assert best.distortion == pytest.approx(brute_force(problem))
