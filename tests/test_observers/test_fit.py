# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a range leaves open comes from the histogram."""

import pytest
import torch
from seeded import seeded

from mmdet_ptq.observers import (
    LpObserver,
    MinMaxObserver,
    PercentileObserver,
    set_range,
)
from mmdet_ptq.quantizers import (
    AdaLogQuantizer,
    PowerOfTwoQuantizer,
    TwinUniformQuantizer,
    UniformQuantizer,
)


def softmax(seed=0):
    return (torch.randn(8, 200, 40, generator=seeded(seed)) * 2).softmax(-1)


def seen(observer, quantizer, *tensors, levels=1):
    observer.bind(quantizer.granularity, levels, torch.get_default_device())
    for level, x in enumerate(tensors):
        observer.observe(x, level if levels > 1 else 0)
    observer.end_image()
    return observer


def err(q, x, p, level=0):
    return (q(x, level) - x).abs().pow(p).mean().item()


@pytest.mark.parametrize('kind', [AdaLogQuantizer, TwinUniformQuantizer])
@pytest.mark.parametrize('grain', ['tensor', 'channel'])
@pytest.mark.parametrize('p', [1.0, 2.4])
def test_fit_on_a_histogram_is_nearly_that_on_the_data(kind, grain, p):
    x = softmax()
    q = kind(4, granularity=grain, axis=0)
    observer = seen(LpObserver(p=p), q, x)
    low, high = observer.ranges(q)
    q.set_range(low, high)
    ranged = err(q, x, p)
    set_range(q, observer, low, high)
    assert err(q, x, p) < ranged
    exact = kind(4, granularity=grain, axis=0)
    rows = q.granularity.rows(x)
    exact.set_range(rows.amin(1), rows.amax(1))
    exact.fit_points(rows, torch.ones_like(rows), p)
    assert err(q, x, p) < 1.2 * err(exact, x, p)


def test_exponent_is_that_of_the_observer_and_else_2():
    x, found = softmax(), []
    for observer in (LpObserver(p=6.0), LpObserver(p=0.5)):
        q = AdaLogQuantizer(3)
        seen(observer, q, x)
        set_range(q, observer, *observer.ranges(q))
        found.append(q)
    assert err(found[0], x, 6.0) < err(found[1], x, 6.0)
    assert err(found[0], x, 0.5) > err(found[1], x, 0.5)
    by_share, by_square = AdaLogQuantizer(3), AdaLogQuantizer(3)
    observer = seen(PercentileObserver(0.999), by_share, x)
    set_range(by_share, observer, *observer.ranges(by_share))
    observer = seen(LpObserver(p=2.0), by_square, x)
    set_range(by_square, observer, *observer.ranges(by_square))
    assert torch.equal(by_share.table, by_square.table)


def test_without_a_histogram_the_range_has_to_do():
    x, q = softmax(), AdaLogQuantizer(4)
    observer = seen(MinMaxObserver(), q, x)
    set_range(q, observer, *observer.ranges(q))
    assert q.q.item() == 15 and q.scale == x.max()


def test_a_level_without_data_keeps_what_the_range_gives():
    x = softmax()
    q = AdaLogQuantizer(4, per_level=True)
    observer = seen(LpObserver(), q, x, x / 5, levels=3)
    set_range(q, observer, *observer.ranges(q))
    assert q.q.shape == (3, 1) and q.q[2].item() == 15
    alone = AdaLogQuantizer(4)
    observer = seen(LpObserver(), alone, x / 5)
    set_range(alone, observer, *observer.ranges(alone))
    assert torch.equal(alone.encoding().table, q.encoding(level=1).table)


def test_what_cannot_be_searched_gets_extremes_and_is_fitted():
    x = torch.randn(6, 2000, generator=seeded(0))
    x *= 2.0 ** torch.arange(-3.0, 3.0)[:, None]
    q = PowerOfTwoQuantizer(4, axis=0)
    observer = seen(LpObserver(p=2.0), q, x)
    assert observer.why_not(q) == ''
    low, high = observer.ranges(q)
    assert torch.equal(low[0], x.amin(1)) and torch.equal(high[0], x.amax(1))
    q.set_range(low, high)
    ranged = err(q, x, 2)
    set_range(q, observer, low, high)
    assert err(q, x, 2) < 0.9 * ranged


def test_others_are_given_their_range_alone():
    x, q = softmax(), UniformQuantizer(4)
    observer = seen(LpObserver(), q, x)
    low, high = observer.ranges(q)
    set_range(q, observer, low, high)
    other = UniformQuantizer(4)
    other.set_range(low, high)
    assert torch.equal(q.scale, other.scale)


def test_zeros_alone_leave_what_the_range_gives():
    """As the input of the first norm of DETR's decoder may be."""
    q = PowerOfTwoQuantizer(8, axis=-1)
    zeros = torch.zeros(2, 3, 5)
    observer = seen(PercentileObserver(percentile=1.0), q, zeros)
    set_range(q, observer, *observer.ranges(q))
    assert torch.equal(q(zeros), zeros)
