# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Extremes and their averages, by hand."""

import pytest
import torch
from observer_kit import feed, grains, new


def test_moving_average_by_hand_and_merge():
    a, q = new('moving')
    a.observe(torch.tensor([-1.0, 2.0]))
    a.observe(torch.tensor([-3.0, 1.0]))  # same image: -3 .. 2
    a.end_image()
    a.observe(torch.tensor([-1.0, 12.0]))
    a.end_image()
    low, high = a.ranges(q)
    assert low.item() == pytest.approx(-2.8)
    assert high.item() == pytest.approx(3.0)
    b = feed(new('moving')[0], [torch.tensor([-4.0, 6.0])])
    states = a.state_dict(), b.state_dict()
    a.merge([states[1]])
    b.merge([states[0]])
    for merged in (a, b):  # two images of a, one of b
        low, high = merged.ranges(q)
        assert low.item() == pytest.approx((-2.8 * 2 - 4) / 3)
        assert high.item() == pytest.approx((3 * 2 + 6) / 3)


def test_average_by_hand():
    observer, q = new('average')
    feed(observer, [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 3.0])])
    observer.observe(torch.tensor([-5.0, 4.0]))  # its end is implied
    assert [r.item() for r in observer.ranges(q)] == [-3.0, 3.0]


@grains
def test_minmax_is_exact(kind, size):
    batch = [torch.randn(1, 4, 300, 301) for _ in range(2)]
    observer, q = new('minmax', kind, size)
    low, high = feed(observer, batch).ranges(q)
    rows = observer.granularity.rows(torch.cat(batch))
    assert torch.equal(low[0], rows.amin(1).cpu())
    assert torch.equal(high[0], rows.amax(1).cpu())
