# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Powell's method with a budget."""

import numpy as np
import pytest

from mmdet_ptq.passes.powell import Powell


class Counted:
    """A function that knows where it was asked."""

    def __init__(self, function):
        self.function = function
        self.asked = []

    def __call__(self, x):
        self.asked.append(x.copy())
        return float(self.function(x))


def search(function, start, width=1.0, budget=1000, rounds=1):
    loss = Counted(function)
    start = np.array(start, float)
    found = Powell(loss, start, float(function(start)), width, budget)
    found.run(rounds)
    assert found.evaluations == len(loss.asked) <= budget
    assert np.all(np.abs(np.array(loss.asked) - start) <= width)
    best = min([start, *loss.asked], key=function)
    assert np.array_equal(found.point, best)
    assert found.value == function(best)
    return found, loss


def test_the_least_of_a_sum_is_found_number_by_number():
    target = np.array([0.7, 1.2, 1.5, 0.4])
    found, _ = search(lambda x: np.square(x - target).sum(), np.ones(4))
    assert np.abs(found.point - target).max() < 0.05


@pytest.mark.parametrize('budget', [1, 3, 10, 17])
def test_no_more_than_the_budget(budget):
    found, _ = search(
        lambda x: np.square(x - 0.3).sum(), np.ones(10), 1.0, budget, 5
    )
    assert found.evaluations == budget


def test_every_number_has_its_turn():
    found, loss = search(
        lambda x: np.square(x - 0.3).sum(), np.ones(10), 1.0, 20
    )
    assert found.evaluations == 20
    tried = (np.array(loss.asked) != 1).any(0)
    assert tried.all()


def test_a_line_is_not_left_for_a_worse_point():
    # the start is best, and a line search does not look there
    found, loss = search(lambda x: np.abs(x - 1).sum() ** 0.1, np.ones(3))
    assert np.array_equal(found.point, np.ones(3))
    # each line begins where the others stayed
    assert all((x != 1).sum() == 1 for x in loss.asked)


def test_a_round_that_gains_nothing_is_the_last():
    def flat(x):
        return 1 + 1e-5 * np.square(x).sum()

    one = search(flat, np.ones(3), rounds=1)[0]
    many = search(flat, np.ones(3), rounds=9)[0]
    assert one.evaluations == many.evaluations


def test_the_way_of_a_round_becomes_a_direction():
    # a valley across the axes: two numbers at a time
    def valley(x):
        return 50 * (x[0] - x[1]) ** 2 + (x[0] + x[1] - 5) ** 2 + x[2] ** 2

    found, loss = search(valley, [1.0, 1.3, 0.4], 2.0, rounds=6)
    assert any(
        np.count_nonzero(b - a) > 1
        for a, b in zip(loss.asked, loss.asked[1:], strict=False)
    )
    # along the axes alone, each step is a fiftieth of what is left
    start = np.array([1.0, 1.3, 0.4])
    alone = Powell(valley, start, valley(start), 2.0, 1000)
    for _ in range(6):
        alone.run(1)
    assert found.value < alone.value / 2


def test_a_number_that_cannot_move_costs_nothing():
    found, loss = search(lambda x: np.square(x).sum(), [1.0], 0.0)
    assert found.evaluations == 0
    assert loss.asked == []
