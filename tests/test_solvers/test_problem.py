import numpy as np
import pytest

from mmdet_ptq.errors import BudgetError, QuantConfigError
from mmdet_ptq.solvers import (
    METHODS,
    Problem,
    Resource,
    decreasing,
    mean_bits_problem,
    solve,
)

TABLE = [[8.0, 2.0], [6.0, 1.0]]


@pytest.mark.parametrize('method', METHODS)
def test_a_budget_below_the_cheapest_options_says_what_can_be_met(method):
    problem = mean_bits_problem([1, 3], [4, 8], TABLE, 3.5)
    with pytest.raises(BudgetError) as error:
        solve(problem, method)
    assert str(error.value) == (
        'a budget of 3.5 mean bits cannot be met: the cheapest options take '
        '4; give 4 to 8'
    )


@pytest.mark.parametrize('method', METHODS)
def test_with_more_than_enough_all_is_best(method):
    found = solve(mean_bits_problem([1, 3], [4, 8], TABLE, 9), method)
    assert found.choice.tolist() == [1, 1]
    assert found.distortion == 3
    assert found.costs == {'mean bits': 8}
    assert found.method == method


@pytest.mark.parametrize('method', METHODS)
def test_what_is_just_enough_is_enough(method):
    # 4.1 * 30 is a little below 123
    table = np.ones((30, 2))
    problem = mean_bits_problem([0.1] * 30, [4.1, 8], table, 4.1)
    assert solve(problem, method).choice.tolist() == [0] * 30


def test_resources_by_hand():
    bits = Resource.mean_bits([1, 3], [4, 8], 5)
    assert bits.costs.tolist() == [[4, 8], [12, 24]]
    assert bits.limit == pytest.approx(20)
    size = Resource.bytes([1, 3], [4, 8], 2.5)
    assert size.costs.tolist() == bits.costs.tolist()
    assert size.limit == pytest.approx(20)
    ops = Resource('BOPs', np.array([[32.0, 64], [80, 160]]), 150)
    problem = Problem(TABLE, (ops,))
    assert problem.bounds(ops) == (112, 224)
    found = solve(problem)
    assert found.choice.tolist() == [1, 0]
    assert found.costs == {'BOPs': 144}


def test_missing_options_are_not_chosen():
    table = [[np.nan, 8, 2], [6, np.inf, 1]]
    problem = mean_bits_problem([1, 1], [2, 4, 8], table, 4)
    assert problem.bounds(problem.resources[0]) == (3, 8)
    for method in METHODS:
        assert solve(problem, method).choice.tolist() == [1, 0]


def test_a_measured_curve_becomes_its_cumulative_minimum():
    given = [[5, 7, 2, 3], [4, np.nan, 6, 1]]
    wanted = [[5, 5, 2, 2], [4, np.nan, 4, 1]]
    np.testing.assert_array_equal(decreasing(given), wanted)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(distortions=[[1, 2]]), 'table of that shape'),
        (dict(distortions=[[np.nan, np.inf], [1, 2]]), 'unit 0 has no option'),
        (dict(sizes=[1, 0]), 'must be above 0, got 0'),
        (dict(sizes=[[1], [3]]), 'lists of numbers'),
        (dict(budget=np.nan), 'must be a number'),
    ],
)
def test_what_is_no_problem_is_refused(change, words):
    given = dict(sizes=[1, 3], bits=[4, 8], distortions=TABLE, budget=4)
    with pytest.raises(ValueError, match=words):
        mean_bits_problem(**{**given, **change})


def test_tables_and_names_are_checked():
    costs = np.ones((2, 2))
    with pytest.raises(ValueError, match='units by options'):
        Problem([1.0, 2.0], (Resource('a', costs, 1),))
    with pytest.raises(ValueError, match='of different names'):
        Problem(TABLE, ())
    with pytest.raises(ValueError, match='of different names'):
        Problem(TABLE, (Resource('a', costs, 1),) * 2)
    with pytest.raises(ValueError, match='shape of the distortions'):
        Problem(TABLE, (Resource('a', costs[:1], 1),))
    with pytest.raises(ValueError, match='finite and not below 0'):
        Problem(TABLE, (Resource('a', -costs, 1),))
    with pytest.raises(ValueError, match='255 options at most'):
        Problem(np.ones((1, 256)), (Resource('a', np.ones((1, 256)), 1),))


def test_methods_and_their_options_are_checked():
    problem = mean_bits_problem([1, 3], [4, 8], TABLE, 9)
    with pytest.raises(QuantConfigError, match="Did you mean 'lagrange'"):
        solve(problem, 'lagrang')
    with pytest.raises(
        QuantConfigError, match="solver 'dp': unknown option 'strict'"
    ):
        solve(problem, 'dp', strict=False)
