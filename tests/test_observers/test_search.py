# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The search for a range, on errors that are known."""

import pytest
import torch
from torch import nn

from mmdet_ptq.observers.search import BestRange, GridError, shrink_search
from mmdet_ptq.quantizers import UniformQuantizer

LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([4.0, 1.0])


def at(low, high):
    """An error that is least at these ends, for both rows."""
    return lambda a, b: (a - low).square() + (b - high).square()


def test_error_by_hand():
    # bits 2 on (0, 3): levels 0, 1, 2, 3
    points = torch.tensor([[0.0, 0.5, 2.25, 5.0]])
    low, high = torch.tensor([[0.0]]), torch.tensor([[3.0]])
    error = GridError(UniformQuantizer(2), points, None, 2)
    # 0.5 goes to the even 0
    assert float(error(low, high)) == pytest.approx(0.25 + 0.0625 + 4)
    weights = torch.tensor([9.0, 1.0, 2.0, 0.5])
    for given in (weights, weights[None]):
        error = GridError(UniformQuantizer(2), points, given, 1)
        found = float(error(low, high))
        assert found == pytest.approx(0.5 + 2 * 0.25 + 0.5 * 2)


def test_what_cannot_be_searched():
    with pytest.raises(ValueError, match='a Linear is not Searchable'):
        GridError(nn.Linear(1, 1), torch.ones(1, 1), None, 2)


def test_full_range_is_the_first_candidate():
    """An error that rises wherever an end moves."""
    found = shrink_search(at(LOW[:, None], HIGH[:, None]), LOW, HIGH, 10, True)
    assert torch.equal(found[0], LOW) and torch.equal(found[1], HIGH)


def test_each_row_finds_its_own_best():
    # t = 0.5 of each: a quarter of the range
    best = BestRange(at(LOW[:, None] / 4, HIGH[:, None] / 4), LOW, HIGH)
    best.line(10, True, True)
    assert torch.equal(best.low, LOW / 4) and torch.equal(best.high, HIGH / 4)
    assert not best.least.any()


def test_rows_do_not_change_one_another():
    """The first is best as it is, the second bad whatever is done."""
    bad = torch.tensor([[0.0], [9.0]])
    best = BestRange(
        lambda a, b: at(LOW[:, None], HIGH[:, None])(a, b) + bad, LOW, HIGH
    )
    best.line(10, True, True)
    assert torch.equal(best.low, LOW) and torch.equal(best.high, HIGH)
    assert best.least.tolist() == [0, 9]


def test_between_two_candidates():
    """Steps of t are a tenth, and a fortieth around the best."""
    share = 0.55**2
    best = BestRange(
        at(LOW[:, None] * share, HIGH[:, None] * share), LOW, HIGH
    )
    best.line(10, True, True)
    torch.testing.assert_close(best.low, LOW * share)
    torch.testing.assert_close(best.high, HIGH * share)


def test_ends_are_moved_apart():
    low, high = -0.25, 1.0
    error = at(low, high)
    one = shrink_search(error, LOW[:1], HIGH[:1], 20, False)
    two = shrink_search(error, LOW[:1], HIGH[:1], 20, True)
    assert float(two[0]) == pytest.approx(low, rel=0.05)
    assert float(two[1]) == pytest.approx(high, rel=0.05)
    assert float(error(*two)) <= float(error(*one))


def test_one_end_may_vanish():
    best = BestRange(at(0.0, HIGH[:, None]), LOW, HIGH)
    best.line(10, True, False)
    assert torch.equal(best.low, torch.zeros(2))
    assert torch.equal(best.high, HIGH)
