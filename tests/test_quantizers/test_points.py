# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Candidates on weighted points."""

import pytest
import torch
from seeded import seeded

from mmdet_ptq.quantizers import AdaLogQuantizer, Ranges, UniformQuantizer
from mmdet_ptq.quantizers.points import (
    SAMPLES,
    better_of,
    equal_samples,
    errors_of,
    pick,
    power_,
    progressive_search,
)


@pytest.mark.parametrize('p', [1, 2, 2.4, 0.5])
def test_power(p):
    x = torch.tensor([0.0, -1.5, 2.0, 1e-9])
    want = x.abs().double() ** p
    got = power_(x.clone(), p).double()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-30)


def test_errors_by_hand():
    """Steps of 1 and of 2, from 0 to 3 and to 6."""
    x = torch.tensor([[0.0, 1.0, 4.0], [0.5, 5.0, 5.0]])
    shares = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.5, 0.0]])
    found = Ranges(torch.zeros(2, 2), torch.tensor([[3.0, 6.0]] * 2))
    got = errors_of(UniformQuantizer(2), x, shares, found, 2.0)
    # 0.5 is halfway from 0 to 1, and even is 0; of 5 the even one is 4
    want = [[0.25, 0.25], [0.25 + 2, 0.25 + 0.5]]
    assert got.tolist() == want


def test_errors_do_not_depend_on_the_parts(monkeypatch):
    x = torch.rand(3, 50, generator=seeded(0))
    ends = torch.rand(3, 40, generator=seeded(1))
    given = UniformQuantizer(3), x, x, Ranges(ends * 0, ends), 2.4
    whole = errors_of(*given)
    monkeypatch.setattr('mmdet_ptq.quantizers.points.BLOCK', 500)
    torch.testing.assert_close(errors_of(*given), whole)


def test_pick():
    found = Ranges(torch.zeros(2, 3), torch.arange(6.0).view(2, 3))
    got = pick(found, torch.tensor([[2, 0], [1, 1]]))
    assert isinstance(got, Ranges)
    assert got.high.tolist() == [[2, 0], [4, 4]]


def test_better_of_is_chosen_row_by_row():
    x = torch.tensor([[3.0, 3.0], [6.0, 6.0]])
    low, three = torch.zeros(2, 1), torch.full((2, 1), 3.0)
    old, new = Ranges(low, three), Ranges(low, three * 2)
    best = better_of(UniformQuantizer(2), x, x, 2.0, old, new)
    assert best.high.tolist() == [[3], [6]]


def test_equal_samples_stand_for_the_points():
    points = torch.tensor([[3.0, 1.0, 2.0, 9.0, -9.0]])
    shares = torch.tensor([[0.25, 0.5, 0.25, 0.0, 0.0]])
    got = equal_samples(points, shares)
    assert got.shape == (1, SAMPLES)
    values, counts = got.unique(return_counts=True)
    assert values.tolist() == [1, 2, 3]
    assert (counts - torch.tensor([256, 128, 128])).abs().max() <= 1


def test_progressive_search_finds_the_best_of_a_dense_grid():
    x = (torch.randn(50, 40, generator=seeded(0)) * 2).softmax(-1)
    x = x.reshape(2, -1)
    shares = torch.rand(x.shape, generator=seeded(1))
    q = AdaLogQuantizer(3, granularity='channel', axis=0)
    found = progressive_search(q, x, shares, 2.0)
    assert {t.shape for t in found} == {(2, 1)}
    got = errors_of(q, x, shares, found, 2.0)[:, 0]
    top = x.amax(1, keepdim=True)
    scales = (top * torch.linspace(0.2, 1.05, 60)).repeat(1, 40)
    steps = torch.linspace(10, 137, 40).round().repeat_interleave(60)
    other = torch.zeros_like(scales)
    every = type(found)(scales, steps.expand_as(scales), other, other)
    least = errors_of(q, x, shares, every, 2.0).amin(1)
    assert (got <= least * 1.01).all()
    coarse = errors_of(q, x, shares, q.coarse(x, 128), 2.0).amin(1)
    assert (got < coarse).all()
