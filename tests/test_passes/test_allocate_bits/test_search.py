# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Of what was measured, the nearest to the float detector stays."""

from math import inf, nan
from types import SimpleNamespace

import numpy as np
import pytest

from mmdet_ptq.errors import NumericError
from mmdet_ptq.passes import AllocateBits
from mmdet_ptq.passes.allocate_bits import search as searching
from mmdet_ptq.passes.allocate_bits.budgets import Budget
from mmdet_ptq.passes.allocate_bits.curves import Curves
from mmdet_ptq.passes.allocate_bits.operands import Operand
from mmdet_ptq.passes.allocate_bits.problems import solved
from mmdet_ptq.passes.allocate_bits.search import search
from mmdet_ptq.structures import QuantSpec

SPEC = QuantSpec('UniformQuantizer', 4)
OPERANDS = [
    Operand('weight', ((name, 'weight'),), SPEC, (3, 4, 5), (10,))
    for name in 'ab'
]
CURVES = Curves(np.array([[9.0, 3.0, 0.0], [4.0, 3.5, 3.0]]), 0.0)


class Told:
    """Says distances in place of taking them."""

    def __init__(self, *distances):
        self.left = list(distances)
        self.around = []

    def curves(self, key, now, probes):
        self.around.append([list(widths) for widths in now])
        return CURVES

    def distances(self, key, widths):
        return self.left.pop(0)


def result(told, mean=4.0, **args):
    base = dict(weight=4, input=4)
    budget = Budget('separate', dict(weight=mean, input=mean), None, base)
    problems = budget.problems(None, OPERANDS, (3, 4, 5))
    session = SimpleNamespace(notes=[])
    session.warn = session.notes.append
    best, flat = search(
        AllocateBits(**args), session, OPERANDS, problems, told
    )
    return best, flat, session.notes


def test_the_choice_of_least_sum():
    best, flat, notes = result(Told(1.0, 2.0))
    assert best.widths == [[5], [3]] and best.predicted == 4
    assert (best.measured, flat) == (1.0, 2.0) and not notes
    assert best.solver == 'dp'


def test_one_width_stays_where_it_is_nearer():
    best, flat, notes = result(Told(2.0, 1.0))
    assert best.widths == [[4], [4]] and best.measured == flat == 1
    # it is a choice like others, and the curves had it above
    assert best.predicted == 6.5
    assert 'one width for all stays' in notes[0]
    assert best.solver == 'one width'


def test_one_width_that_does_not_fit_is_not_tried():
    told = Told(2.0)
    best, flat, _ = result(told, mean=3.5)
    assert flat is None and not told.left
    assert best.spent == [3.5]


def test_rounds_go_on_from_the_choice_before():
    told = Told(1.0, 0.5, 0.75, 2.0)
    best, _, _ = result(told, rounds=3)
    assert told.around == [[[None], [None]], [[5], [3]], [[5], [3]]]
    assert best.measured == 0.5


def test_no_finite_choice_is_an_error():
    with pytest.raises(NumericError, match='every choice of widths'):
        result(Told(inf, inf))


def test_one_width_that_gives_no_number_has_no_distance():
    best, flat, notes = result(Told(1.0, nan))
    assert best.widths == [[5], [3]] and flat is None and not notes


def test_a_solver_that_had_no_time_left_is_told(monkeypatch):
    def stopped(*args):
        columns, _ = solved(*args)
        return columns, False

    monkeypatch.setattr(searching, 'solved', stopped)
    best, _, (note,) = result(Told(1.0, 2.0))
    assert best.widths == [[5], [3]]
    assert note.startswith('AllocateBits: weights: time_limit ended')
